"""How far a guest has got on its way to the target. Pure.

A guest that cannot get there is not asked again and again: what the operator can know is that it
moves, that it does not, or that it has no memory left to give.
"""

from __future__ import annotations

from typing import Final

from protocol.virtio_balloon import StatTag
from vhost_balloon.balloon.guest_stats import GuestStats
from vhost_balloon.figures.statistics import VmState

STUCK_AFTER: Final = 5.0
"""Seconds without progress: Xen's squeezed gives a guest as long."""

EXHAUSTED_SHARE: Final = 0.03
"""A guest that stands still with less available than this share of its memory has no more."""


class Convergence:
    """Follows num_pages (wanted) and actual (held), both in balloon pages."""

    def __init__(self) -> None:
        self._wanted = 0
        self._held = 0
        self._progress_at = float("-inf")
        self._took_back = False

    def observe(self, wanted: int, held: int, now: float) -> None:
        """Take the latest figures; now is the monotonic clock in seconds."""
        if wanted != self._wanted:
            self._took_back = False
            self._progress_at = now
        elif abs(held - wanted) < abs(self._held - wanted):
            self._progress_at = now
        # Pages that leave the balloon although more are wanted: the guest deflates on OOM.
        if wanted == self._wanted and held < self._held <= wanted:
            self._took_back = True
        self._wanted, self._held = wanted, held

    def new_driver(self, now: float) -> None:
        """The guest starts again with an empty balloon."""
        self._held, self._took_back, self._progress_at = 0, False, now

    def state(self, now: float, memory_size: int, stats: GuestStats) -> VmState:
        """The state of a VM whose driver is ready; memory_size is in bytes."""
        if self._held == self._wanted:
            return VmState.DONE
        if self._took_back:
            return VmState.OUT_OF_MEMORY
        if now - self._progress_at < STUCK_AFTER:
            return VmState.MOVING
        available = stats.values.get(StatTag.AVAIL)
        inflating = self._held < self._wanted
        if inflating and available is not None and available < memory_size * EXHAUSTED_SHARE:
            return VmState.OUT_OF_MEMORY
        return VmState.STUCK

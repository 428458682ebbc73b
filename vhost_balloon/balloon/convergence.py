"""How far a guest has come on the way to its target. Pure.

A guest that cannot reach its target is not pressed: the operator learns whether it moves, is stuck,
or has no more memory to give.
"""

from __future__ import annotations

from typing import Final

from protocol.virtio_balloon import StatTag
from vhost_balloon.balloon.guest_stats import GuestStats
from vhost_balloon.figures.statistics import VmState

STUCK_AFTER: Final = 5.0
"""Seconds without progress, as Xen's squeezed grants a guest."""

EXHAUSTED_SHARE: Final = 0.03
"""A guest without progress has no more to give if less than this share of its memory is available.
"""


class Convergence:
    """Follows a balloon's target and the pages held in it, both in balloon pages."""

    def __init__(self) -> None:
        self._target = 0
        self._held = 0
        self._progress_at = float("-inf")
        self._took_back = False

    def observe(self, target: int, held: int, now: float) -> None:
        """Take the latest figures. now: the monotonic clock in seconds."""
        if target != self._target:
            self._took_back = False
            self._progress_at = now
        elif abs(held - target) < abs(self._held - target):
            self._progress_at = now
        # Pages leave a balloon that is not above its target: the guest deflates on OOM.
        if target == self._target and held < self._held <= target:
            self._took_back = True
        self._target, self._held = target, held

    def new_driver(self, now: float) -> None:
        """A driver was loaded: the balloon is empty."""
        self._held, self._took_back, self._progress_at = 0, False, now

    def state(self, now: float, memory_size: int, stats: GuestStats) -> VmState:
        """The state of a VM whose driver is ready. memory_size: bytes of guest memory."""
        if self._held == self._target:
            return VmState.DONE
        if self._took_back:
            return VmState.OUT_OF_MEMORY
        if now - self._progress_at < STUCK_AFTER:
            return VmState.MOVING
        available = stats.values.get(StatTag.AVAIL)
        inflating = self._held < self._target
        if inflating and available is not None and available < memory_size * EXHAUSTED_SHARE:
            return VmState.OUT_OF_MEMORY
        return VmState.STUCK

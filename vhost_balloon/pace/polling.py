"""Adaptive polling: a peer that was just answered often sends the next request immediately.

Sleeping until a descriptor is readable, and being woken, takes longer than a small request. So a
ring or a front end is polled for a moment first, as QEMU's own event loops do. It is polled only if
its last request came within such a moment; rare requests cost nothing extra.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter
from typing import Final

import trio

POLL_SECONDS: Final = 200e-6
"""How long to poll before sleeping; KVM's default halt-polling time."""

SOON: Final = 250e-6
"""A request that came this soon after an answer, sleep and wake-up included, was worth polling."""

_ALONE: Final = len(os.sched_getaffinity(0)) == 1
"""With a single processor, no peer can send anything while this process polls."""


class Polling:
    """Decides when to poll one peer. Uses the real clock, even where trio's clock is mocked.

    looks: how often to look between two turns of all other tasks. A turn takes some 4 us, even if
    none of them has anything to do.
    """

    def __init__(self, looks: int = 1) -> None:
        self._looks: Final = range(looks)
        self._answered_at = float("-inf")
        self._is_worth_it = False

    def answered(self) -> None:
        """The peer's request was answered."""
        self._answered_at = perf_counter()

    def woken(self) -> None:
        """A request woke this process."""
        self._is_worth_it = not _ALONE and perf_counter() - self._answered_at < SOON

    async def finds(self, has_request: Callable[[], bool]) -> bool:
        """Poll for the next request, if that is worth it. Returns whether one came."""
        until = self._answered_at + POLL_SECONDS
        while self._is_worth_it:
            await trio.lowlevel.checkpoint()
            for _ in self._looks:
                if has_request():
                    return True
            self._is_worth_it = perf_counter() < until
        return False

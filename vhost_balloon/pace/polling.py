"""Adaptive polling: who was just answered often asks again at once.

To sleep until a descriptor is readable, and to be woken, takes longer than a small request. So a
ring or a front end is looked at for a moment before that, as QEMU's own event loops do it; but only
if what it asked last was small and had come in such a moment: where requests are rare or large,
nothing is spent.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import perf_counter
from typing import Final

import trio

POLL_SECONDS: Final = 200e-6
"""How long it is looked at: as long as KVM by default looks before it lets a processor sleep."""

SOON: Final = 250e-6
"""What came within this time of an answer, a sleep and a wake included, would have been found."""

SHORT: Final = 1e-3
"""What takes longer to answer gains nothing, and its thread has use for this one's processor."""

_ALONE: Final = len(os.sched_getaffinity(0)) == 1
"""With one processor nobody could ask while this process looks."""


class Polling:
    """Of one asker. The clock is the real one also where trio's stands still."""

    def __init__(self) -> None:
        self._asked_at = self._answered_at = float("-inf")
        self._is_worth_it = False

    def answered(self) -> None:
        """It has been answered."""
        self._answered_at = perf_counter()
        self._is_worth_it &= self._answered_at - self._asked_at < SHORT

    def woken(self) -> None:
        """It asked while this process slept."""
        self._asked_at = perf_counter()
        self._is_worth_it = not _ALONE and self._asked_at - self._answered_at < SOON

    async def finds(self, asks: Callable[[], bool]) -> bool:
        """Whether it asks again within a moment of its answer."""
        until = self._answered_at + POLL_SECONDS
        while self._is_worth_it:
            await trio.lowlevel.checkpoint()
            if asks():
                self._asked_at = perf_counter()
                return True
            self._is_worth_it = perf_counter() < until
        return False

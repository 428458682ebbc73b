"""Calls that a file system may hang: in a thread, and for a limited time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import trio

T = TypeVar("T")

PATIENCE: Final = 1.0
"""Seconds for a call, unless it is given others."""


class Thread:
    """Runs one call at a time. One that hangs takes up a single thread: the next ones wait for it,
    in vain, instead of starting others."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(1)

    async def run(self, call: Callable[[], T], seconds: float | None = None) -> T:
        """What call() returns or raises; trio.TooSlowError after some seconds, or after PATIENCE.

        A call that is given up may still end at any time, and its result is dropped. So it must not
        change anything that others see.
        """
        with trio.fail_after(PATIENCE if seconds is None else seconds):
            return await trio.to_thread.run_sync(
                call, limiter=self._limiter, abandon_on_cancel=True
            )

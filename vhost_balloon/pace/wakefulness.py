"""Knows how long what is found waiting may have waited.

A guest driver may wait a second and then use its pages again, whether they were acknowledged or
not (Windows does). So a request that may have waited too long is acknowledged without being
discarded. A kick carries no time. What can be known is when this process looked last, and whether
it was woken at once where it slept since: it may have been stopped, frozen, or kept from a
processor instead.

The scheduler's own figures prove that it slept: it left the processor once, for that sleep, and
they say how long it then waited for a processor. One gap is left: a stop in the few microseconds
between reading these figures and a sleep that finds its event there already.

Source: Linux, Documentation/scheduler/sched-stats.rst, "/proc/<pid>/schedstat"; getrusage(2).
"""

from __future__ import annotations

import math
import os
from resource import RUSAGE_THREAD, getrusage
from time import monotonic
from typing import Final

import trio

HOLD_LIMIT: Final = 0.5
"""Longest time in seconds that a request is held, half of what Windows' driver waits."""

SHORT: Final = 0.05
"""Seconds between two looks that need no proof: it is taken as time that was waited."""

GRACE: Final = 0.1
"""Seconds after a gap in which more may be found that waited, such as a message that starts a ring.
"""

TICK: Final = 0.1
"""Seconds between two looks where the scheduler's figures are not to be had."""

_SCHEDSTAT: Final = "/proc/thread-self/schedstat"


class Wakefulness(trio.abc.Instrument):
    """Of the event loop that run() runs in."""

    def __init__(self) -> None:
        self._looked = self._slept_from = self._since = monotonic()
        self._gap_until = -math.inf
        self._delay: float | None = None
        self._switches = 0
        self._schedstat = -1

    async def run(self) -> None:
        """Watch until cancelled. Where the kernel does not say how the process slept, the loop
        comes round often enough to need no proof."""
        self._schedstat = _open()
        trio.lowlevel.add_instrument(self)
        try:
            while self._schedstat < 0:
                await trio.sleep(TICK)
            await trio.sleep_forever()
        finally:
            trio.lowlevel.remove_instrument(self)
            if self._schedstat >= 0:
                os.close(self._schedstat)

    def waited(self) -> float:
        """The longest time, in seconds, that what is found now may have waited."""
        return monotonic() - self._since

    def before_io_wait(self, timeout: float) -> None:
        """See trio.abc.Instrument."""
        if timeout > 0:
            self._slept_from = monotonic()
            self._delay = _delay(self._schedstat)
            self._switches = _switches()

    def after_io_wait(self, timeout: float) -> None:
        """See trio.abc.Instrument."""
        before, self._looked = self._looked, monotonic()
        gap = self._looked - before
        if gap > SHORT and timeout > 0 and self._was_woken_at_once():
            return
        if self._looked >= self._gap_until:
            self._since = before
        if gap > SHORT:
            self._gap_until = self._looked + GRACE

    def _was_woken_at_once(self) -> bool:
        """Whether this was one sleep, and what is found now came at its end."""
        before, after = self._delay, _delay(self._schedstat)
        if before is None or after is None or _switches() - self._switches != 1:
            return False
        delay = after - before
        if self._looked - self._slept_from - delay <= SHORT:
            return False
        self._since = self._looked - delay
        self._gap_until = -math.inf
        return True


def _open() -> int:
    """A descriptor of this thread's figures; -1 if there are none."""
    try:
        fd = os.open(_SCHEDSTAT, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    if _delay(fd) is not None:
        return fd
    os.close(fd)
    return -1


def _switches() -> int:
    """How often this thread left the processor of its own accord."""
    return getrusage(RUSAGE_THREAD).ru_nvcsw


def _delay(fd: int) -> float | None:
    """Seconds that this thread has waited for a processor; None if the kernel does not count it."""
    try:
        _, delay, times = os.pread(fd, 100, 0).split()
        return int(delay) / 1e9 if int(times) else None
    except (OSError, ValueError):
        return None

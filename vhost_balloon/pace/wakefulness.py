"""Bounds how long a request that is found now may have waited.

Windows' driver waits one second, and then uses its pages again whether they were acknowledged or
not. So a request that may have waited too long is acknowledged without discarding. A kick carries
no time. All that is known is when this process last looked, and whether it slept since and was
woken immediately; it may have been stopped, frozen, or kept waiting for a processor instead.

The scheduler's figures prove a sleep: the thread left the processor exactly once, for that sleep,
and they tell how long it then waited for a processor. One gap remains: a stop in the few
microseconds between reading these figures and a sleep whose event is already there.

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
"""Seconds that a request may be held: half of the time that Windows' driver waits."""

SHORT: Final = 0.05
"""A gap of at most this many seconds between two looks needs no proof: it counts as waiting."""

GRACE: Final = 0.1
"""Seconds after a gap in which requests that waited may still be found: for example, the message
that starts their ring waited as well."""

TICK: Final = 0.1
"""Seconds between two looks where the scheduler's figures are not available."""

_SCHEDSTAT: Final = "/proc/thread-self/schedstat"


class Wakefulness(trio.abc.Instrument):
    """Watches the event loop that run() runs in."""

    def __init__(self) -> None:
        self._looked = self._slept_from = self._since = monotonic()
        self._gap_until = -math.inf
        self._delay: float | None = None
        self._switches = 0
        self._schedstat = -1

    async def run(self) -> None:
        """Watch until cancelled. Without the scheduler's figures, wake the loop often enough to
        need no proof."""
        self._schedstat = _open()
        trio.lowlevel.add_instrument(self)
        try:
            while self._schedstat < 0:  # noqa: ASYNC110 - waits for time, not for an event
                await trio.sleep(TICK)
            await trio.sleep_forever()
        finally:
            trio.lowlevel.remove_instrument(self)
            if self._schedstat >= 0:
                os.close(self._schedstat)

    def waited(self) -> float:
        """The longest time in seconds that a request found now may have waited."""
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
        """Whether the gap was a single sleep, so that the event found now came at its end."""
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
    """A descriptor of this thread's scheduler figures, or -1 if there are none."""
    try:
        fd = os.open(_SCHEDSTAT, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1
    if _delay(fd) is not None:
        return fd
    os.close(fd)
    return -1


def _switches() -> int:
    """How often this thread has left the processor voluntarily."""
    return getrusage(RUSAGE_THREAD).ru_nvcsw


def _delay(fd: int) -> float | None:
    """Seconds that this thread has waited for a processor, or None if the kernel does not say."""
    try:
        _, delay, times = os.pread(fd, 100, 0).split()
        return int(delay) / 1e9 if int(times) else None
    except (OSError, ValueError):
        return None

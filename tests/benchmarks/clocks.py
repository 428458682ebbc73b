"""Processor time of other processes."""

from __future__ import annotations

import time
from typing import Final

REST_SECONDS: Final = 0.002
"""More than a device that was asked nothing more takes to fall asleep."""


def cpu_seconds(pid: int) -> float:
    """User and system time of a whole process, ended threads included, to the nanosecond.

    Source: Linux, include/linux/posix-timers.h: the clock id of a process's scheduler clock.
    """
    return time.clock_gettime_ns(~pid << 3 | 2) / 1e9


def cpu_seconds_at_rest(pid: int) -> float:
    """The same once the process sleeps: of one that runs, the kernel counts only up to a tick."""
    time.sleep(REST_SECONDS)
    return cpu_seconds(pid)

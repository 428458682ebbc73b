"""Processor time of other processes."""

from __future__ import annotations

import time


def cpu_seconds(pid: int) -> float:
    """User and system time of a whole process, ended threads included, to the nanosecond.

    Source: Linux, include/linux/posix-timers.h: the clock id of a process's scheduler clock.
    """
    return time.clock_gettime_ns(~pid << 3 | 2) / 1e9

"""The clock of times that outlive this process, or leave it."""

from __future__ import annotations

import time


def boottime() -> float:
    """Seconds since the host booted, suspended or not (CLOCK_BOOTTIME). All processes share it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)

"""The operator's limit on what reports may cost (--report-rate). Pure."""

from __future__ import annotations

from typing import Final

REPORT_BURST: Final = 2.0
"""Seconds' worth of --report-rate that may be discarded at once: Linux reports every two seconds.
The piece that exceeds it (8 MiB, or one larger huge page) is discarded and saved for afterwards, so
that any rate permits pages of any size."""


class Bucket:
    """A token bucket: at most burst at once, and rate per second in the long run."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._filled_at = 0.0

    def take(self, amount: float, now: float) -> None:
        """Take amount. What exceeds the remaining tokens is owed.

        now: a monotonic clock in seconds.
        """
        self._fill(now)
        self._left -= amount

    def is_spent(self, now: float) -> bool:
        """Whether no tokens remain."""
        self._fill(now)
        return self._left <= 0

    def _fill(self, now: float) -> None:
        earned = (now - self._filled_at) * self._rate
        self._left = min(self._burst, self._left + earned)
        self._filled_at = now

"""The operator's limit of what reports may cost, beyond which they are acknowledged only. Pure."""

from __future__ import annotations

from typing import Final

REPORT_BURST: Final = 2.0
"""Seconds of --report-rate that may be discarded at once: Linux reports every two seconds. The
piece (8 MiB, or a huge page if that is larger) that goes beyond it is saved up for afterwards, so
that any rate lets pages of any size go."""


class Bucket:
    """A token bucket: at most burst at once, and rate a second in the long run."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._filled_at = 0.0

    def take(self, amount: float, now: float) -> None:
        """Take amount; what is more than is left is owed.

        now is a monotonic clock in seconds.
        """
        self._fill(now)
        self._left -= amount

    def is_spent(self, now: float) -> bool:
        """Whether nothing is left now."""
        self._fill(now)
        return self._left <= 0

    def _fill(self, now: float) -> None:
        earned = (now - self._filled_at) * self._rate
        self._left = min(self._burst, self._left + earned)
        self._filled_at = now

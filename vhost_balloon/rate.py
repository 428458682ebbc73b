"""Limits of what one VM may have done, which delay and never refuse; and the operator's limit of
what reports may cost, beyond which they are acknowledged only. Pure.

All of them that are a rate are here. What bounds a single request is where the request is read:
decode, virtqueue, stats_processor, discard. README.md promises them ("Hostile guests and front
ends"): none may get lower than it says.
"""

from __future__ import annotations

from typing import Final

MESSAGE_RATE: Final = 20_000.0
MESSAGE_BURST: Final = 20_000.0
"""Messages a second from a VM's front ends, and at once. QEMU sends some 60 to start a device and
two for each access to the config space."""

STEP_RATE: Final = 1000.0
STEP_BURST: Final = 2000.0
"""Steps of work (some 250 us each: see turn) a second for one guest, and at once: a guest with
endless requests gets a quarter of the event loop. 16,384 scattered page numbers take 400 steps; a
driver that waits for its answers, as Linux's and Windows's do, is never delayed."""


REPORT_BURST: Final = 2.0
"""Seconds of --report-rate that may be discarded at once: Linux reports every two seconds. The
batch (64 MiB, or a huge page if that is larger) that goes beyond it is saved up for afterwards, so
that any rate lets pages of any size go."""


class Bucket:
    """A token bucket: at most burst at once, and rate a second in the long run."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left = burst
        self._filled_at = 0.0

    def take(self, amount: float, now: float) -> float:
        """Take amount, and return how many seconds to wait before more may be done.

        now is a monotonic clock in seconds. What was taken too early is waited for, once.
        """
        self._fill(now)
        self._left -= amount
        return max(-self._left, 0.0) / self._rate

    def is_spent(self, now: float) -> bool:
        """Whether nothing may be taken now without a wait."""
        self._fill(now)
        return self._left <= 0

    def _fill(self, now: float) -> None:
        earned = (now - self._filled_at) * self._rate
        self._left = min(self._burst, self._left + earned)
        self._filled_at = now

"""How long the host's policy leaves a VM alone, because an operator said so. Pure.

An operator's order makes a hold. It belongs to the front end, as the target does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hold:
    """until: CLOCK_BOOTTIME in seconds, which all processes share; math.inf for no end."""

    until: float = 0.0

    def lasts(self, now: float) -> bool:
        return now < self.until

    def left(self, now: float) -> float | None:
        """Seconds until it ends; None if it has no end, or is over."""
        return self.until - now if self.lasts(now) and math.isfinite(self.until) else None


FREE = Hold()
"""No hold."""


def hold_for(seconds: float | None, now: float) -> Hold:
    """A hold that begins now. seconds: None for one without an end."""
    return Hold(math.inf if seconds is None else now + seconds)

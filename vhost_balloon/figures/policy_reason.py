"""Why a VM's target was moved, or was not by the policy: exactly one at any time. Pure."""

from __future__ import annotations

import enum
from typing import Final


class Reason(enum.Enum):
    """The values appear in query-policy and as metric labels."""

    # Orders.
    RELIEF = "relief"
    SILENT = "silent"
    RECLAIM = "reclaim"
    REGROW = "regrow"
    STUCK = "stuck"
    # Not moved; the first that holds.
    OFF = "off"
    MANUAL = "manual"
    NO_DRIVER = "no-driver"
    INERT = "inert"
    PINNED = "pinned"
    NO_STATISTICS = "no-statistics"
    STALE = "stale"
    DISTRESS = "distress"
    MOVING = "moving"
    HELD = "held"
    NOTHING_TO_SPARE = "nothing-to-spare"
    NOT_NEEDED = "not-needed"
    TOO_SMALL = "too-small"


ORDERS: Final = (Reason.RELIEF, Reason.SILENT, Reason.RECLAIM, Reason.REGROW, Reason.STUCK)
"""Reasons that come with an order."""

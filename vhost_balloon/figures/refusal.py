"""Why bytes that a guest named were not discarded; the values are the metric's label. Pure."""

from __future__ import annotations

from typing import Final


class Refusal:
    """Content that is wrong, or that a rule of this device keeps."""

    OUTSIDE: Final = "outside-memory"
    UNALIGNED: Final = "unaligned"
    EMPTY: Final = "empty"
    ODD_TAIL: Final = "odd-tail"
    DIRECTION: Final = "direction"
    OVERSIZED: Final = "oversized"
    PARTIAL_HUGE_PAGE: Final = "partial-huge-page"
    RING: Final = "ring"
    HUGETLB: Final = "hugetlb"
    FILESYSTEM: Final = "filesystem"
    POISON: Final = "poison"
    PAUSED: Final = "paused"
    RATE: Final = "rate"
    PINNED: Final = "pinned"
    PINS_UNKNOWN: Final = "pins-unknown"
    NEVER: Final = "discard-never"
    FOREIGN: Final = "foreign-state"
    LATE: Final = "late"
    FAILED: Final = "failed"


BY_RULE: Final = frozenset(
    {
        Refusal.PARTIAL_HUGE_PAGE,
        Refusal.HUGETLB,
        Refusal.FILESYSTEM,
        Refusal.POISON,
        Refusal.PAUSED,
        Refusal.RATE,
        Refusal.PINNED,
        Refusal.PINS_UNKNOWN,
        Refusal.NEVER,
        Refusal.FOREIGN,
    }
)
"""Reasons that are no fault of the request's: they are counted, and not logged each time."""

OPERATOR: Final = "operator"
"""The operator paused reports: what is refused for it counts as Refusal.PAUSED."""

PAUSE_REASONS: Final = (
    OPERATOR,
    Refusal.PINNED,
    Refusal.PINS_UNKNOWN,
    Refusal.NEVER,
    Refusal.POISON,
)
"""Why reports may be acknowledged and not discarded, all of them; the values are a metric's label.
"""

EVERY_REASON: Final = tuple(
    value for name, value in vars(Refusal).items() if not name.startswith("_")
)

"""Why memory that a guest named was not discarded. The values are metric labels. Pure."""

from __future__ import annotations

from typing import Final

from vhost_balloon.figures.statistics import VmState


class Refusal:
    """Either the request is wrong, or a rule keeps the memory (BY_RULE)."""

    OUTSIDE: Final = "outside-memory"
    UNALIGNED: Final = "unaligned"
    EMPTY: Final = "empty"
    ODD_TAIL: Final = "odd-tail"
    DIRECTION: Final = "direction"
    OVERSIZED: Final = "oversized"
    PARTIAL_HUGE_PAGE: Final = "partial-huge-page"
    RING: Final = "ring"
    UNTOUCHED: Final = "untouched-region"
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
        Refusal.UNTOUCHED,
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
"""Reasons that are not the guest's fault: counted, but not logged for each request."""

OPERATOR: Final = "operator"
"""The operator paused reporting. Memory refused for this counts as Refusal.PAUSED."""

INERT: Final = VmState.INERT.value
"""Nothing is done for the front end. Its requests stay in the rings."""

PAUSE_REASONS: Final = (
    OPERATOR,
    INERT,
    Refusal.FOREIGN,
    Refusal.NEVER,
    Refusal.PINNED,
    Refusal.PINS_UNKNOWN,
    Refusal.POISON,
    Refusal.HUGETLB,
    Refusal.FILESYSTEM,
    Refusal.RATE,
)
"""Every reason not to discard any reported memory, in the order in which those that apply are
shown. HUGETLB and FILESYSTEM apply if they keep all of the guest's memory, RATE while the limit is
spent. The values are metric labels."""

EVERY_REASON: Final = tuple(
    value for name, value in vars(Refusal).items() if not name.startswith("_")
)

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
    LATE: Final = "late"
    FAILED: Final = "failed"


EVERY_REASON: Final = tuple(
    value for name, value in vars(Refusal).items() if not name.startswith("_")
)

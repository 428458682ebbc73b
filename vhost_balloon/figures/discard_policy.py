"""Which memory the operator lets the daemon discard."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class DiscardMode(enum.Enum):
    """The operator's word on pinned memory: look for pins, do not look, or discard nothing."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class DiscardPolicy:
    """Which memory may be discarded at all; mode says whether pinned memory may."""

    mode: DiscardMode = DiscardMode.AUTO
    hugetlb: bool = False
    other_filesystems: bool = False

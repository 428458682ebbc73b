"""Which memory the operator permits the daemon to discard. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class DiscardMode(enum.Enum):
    """Whether to look for pinned memory (auto), ignore it (always), or discard nothing (never)."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class DiscardPolicy:
    """mode: how to treat pinned memory. The others permit memory that is not on tmpfs."""

    mode: DiscardMode = DiscardMode.AUTO
    hugetlb: bool = False
    other_filesystems: bool = False

"""What other rooms show of a VM: its state, its memory regions, its queues. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final, NamedTuple

from protocol.virtio_balloon import Queue

UNTOUCHED: Final = "untouched"
"""The backing of a region that is left alone, because it cannot be mapped or is no file."""


@dataclass(frozen=True, slots=True)
class RegionStatistics:
    """One memory region. Sizes in bytes; backing is "tmpfs", "hugetlb", "other" or UNTOUCHED, whose
    page_size is 0."""

    guest_address: int
    size: int
    page_size: int
    backing: str


class HugePages(NamedTuple):
    """Host pages that are partly or wholly in the balloon, and the balloon's bytes in the partial
    ones, which wait for the rest."""

    partial: int
    whole: int
    waiting: int


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """One started ring. queue is None while no task serves it."""

    index: int
    queue: Queue | None
    size: int
    started: bool
    enabled: bool
    broken: str | None
    requests: int


class VmState(enum.Enum):
    """The balloon's state. The values appear in query-vms and as metric labels."""

    DISCONNECTED = "disconnected"
    INERT = "inert"
    NO_DRIVER = "no-driver"
    MOVING = "moving"
    STUCK = "stuck"
    OUT_OF_MEMORY = "out-of-memory"
    DONE = "done"

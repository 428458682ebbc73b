"""TODO."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NamedTuple

from protocol.virtio_balloon import Queue


@dataclass(frozen=True, slots=True)
class RegionStatistics:
    """One memory region: sizes in bytes, backing is "tmpfs", "hugetlb" or "other"."""

    guest_address: int
    size: int
    page_size: int
    backing: str


class HugePages(NamedTuple):
    """Host pages with balloon pages in them, and the bytes that wait in the partial ones."""

    partial: int
    whole: int
    waiting: int


@dataclass(frozen=True, slots=True)
class QueueStatistics:
    """One started ring; queue is None while it is not served."""

    index: int
    queue: Queue | None
    size: int
    started: bool
    enabled: bool
    broken: str | None
    requests: int


class VmState(enum.Enum):
    """What a VM's balloon is doing; the values are those of query-vms and of the metric."""

    DISCONNECTED = "disconnected"
    INERT = "inert"
    NO_DRIVER = "no-driver"
    MOVING = "moving"
    STUCK = "stuck"
    OUT_OF_MEMORY = "out-of-memory"
    DONE = "done"

"""The traditional memory balloon device: features, config space, statistics, commands.

Source: virtio specification, "Traditional Memory Balloon Device", and Linux
include/uapi/linux/virtio_balloon.h for the statistics tags 10-15.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from construct import GreedyRange, Int16ul, Int32ul, Int64ul, Struct

VIRTIO_ID: Final = 5

PFN_SHIFT: Final = 12
PFN_SIZE: Final = 4
"""Bytes of one page frame number in an inflate or deflate buffer."""
BALLOON_PAGE_SIZE: Final = 1 << PFN_SHIFT
"""PFNs count 4096-byte units, whatever page size host and guest use."""


class BalloonFeature(enum.IntFlag):
    """VIRTIO_BALLOON_F_* as masks."""

    MUST_TELL_HOST = 1 << 0
    STATS_VQ = 1 << 1
    DEFLATE_ON_OOM = 1 << 2
    FREE_PAGE_HINT = 1 << 3
    PAGE_POISON = 1 << 4
    PAGE_REPORTING = 1 << 5


class Queue(enum.Enum):
    """The device's queues, named as in the specification."""

    INFLATE = "inflate"
    DEFLATE = "deflate"
    STATS = "stats"
    FREE_PAGE = "free-page"
    REPORTING = "reporting"


INFLATE_INDEX: Final = 0
DEFLATE_INDEX: Final = 1
FIRST_OPTIONAL_INDEX: Final = 2
NUM_QUEUES: Final = 5

OPTIONAL_QUEUES: Final = (
    (BalloonFeature.STATS_VQ, Queue.STATS),
    (BalloonFeature.FREE_PAGE_HINT, Queue.FREE_PAGE),
    (BalloonFeature.PAGE_REPORTING, Queue.REPORTING),
)
"""The optional queues in the order that all numbering conventions share."""

ConfigSpace = Struct(
    "num_pages" / Int32ul,
    "actual" / Int32ul,
    "free_page_hint_cmd_id" / Int32ul,
    "poison_val" / Int32ul,
)
CONFIG_SPACE: Final = struct.Struct("<IIII")
"""Fast form of ConfigSpace."""
CONFIG_SIZE: Final = 16
NUM_PAGES_SIZE: Final = 4
"""Bytes of num_pages, the config space's first field."""

CMD_ID_STOP: Final = 0
CMD_ID_DONE: Final = 1


class StatTag(enum.IntEnum):
    """VIRTIO_BALLOON_S_*: sizes in bytes; the others count events since the guest's boot."""

    SWAP_IN = 0
    SWAP_OUT = 1
    MAJFLT = 2
    MINFLT = 3
    MEMFREE = 4
    MEMTOT = 5
    AVAIL = 6
    CACHES = 7
    HTLB_PGALLOC = 8
    HTLB_PGFAIL = 9
    OOM_KILL = 10
    ALLOC_STALL = 11
    ASYNC_SCAN = 12
    DIRECT_SCAN = 13
    ASYNC_RECLAIM = 14
    DIRECT_RECLAIM = 15


STAT_NAMES: Final[dict[StatTag, str]] = {
    StatTag.SWAP_IN: "stat-swap-in",
    StatTag.SWAP_OUT: "stat-swap-out",
    StatTag.MAJFLT: "stat-major-faults",
    StatTag.MINFLT: "stat-minor-faults",
    StatTag.MEMFREE: "stat-free-memory",
    StatTag.MEMTOT: "stat-total-memory",
    StatTag.AVAIL: "stat-available-memory",
    StatTag.CACHES: "stat-disk-caches",
    StatTag.HTLB_PGALLOC: "stat-htlb-pgalloc",
    StatTag.HTLB_PGFAIL: "stat-htlb-pgfail",
    StatTag.OOM_KILL: "stat-oom-kills",
    StatTag.ALLOC_STALL: "stat-alloc-stalls",
    StatTag.ASYNC_SCAN: "stat-async-scans",
    StatTag.DIRECT_SCAN: "stat-direct-scans",
    StatTag.ASYNC_RECLAIM: "stat-async-reclaims",
    StatTag.DIRECT_RECLAIM: "stat-direct-reclaims",
}
"""The keys of QEMU's guest-stats property."""

STAT_VALUES_END: Final = 1 << 63
"""Values from here on say that the guest does not know. virtio-win sends -1, also multiplied by the
page size or added to a size, and a 32-bit counter as a negative number once its sign bit is set. No
true value is that large: it would be 8 EiB."""

STAT_UNKNOWN: Final = (1 << 64) - 1
"""QEMU's value for a statistic that the guest has not provided."""

Stat = Struct("tag" / Int16ul, "value" / Int64ul)
Stats = GreedyRange(Stat)
STAT: Final = struct.Struct("<HQ")
"""Fast form of Stat; packed, 10 bytes."""

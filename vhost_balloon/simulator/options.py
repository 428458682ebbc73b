"""The kinds of balloon drivers that a simulated guest can have."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from protocol import virtio_balloon as vb
from protocol.virtio_balloon import Queue, StatTag
from protocol.virtio_ring import RingFeature

REPORT_DELAY: Final = 2.0
"""Seconds from freeing a page to the pass that reports it (mm/page_reporting.c)."""

BALLOON_FEATURES: Final = (1 << 6) - 1
RING_FEATURES: Final = int(RingFeature.INDIRECT_DESC | RingFeature.VERSION_1)
LINUX_FEATURES: Final = BALLOON_FEATURES | RING_FEATURES


class Numbering(enum.Enum):
    """How the optional queues are numbered when one of them is missing."""

    SPECIFICATION = "fixed: 2, 3 and 4"
    OFFERED = "counting the queues whose feature the device offers, as QEMU's device does"
    NEGOTIATED = "counting the queues whose feature was negotiated, as Linux does"


def queue_indexes(numbering: Numbering, offered: int, negotiated: int) -> dict[Queue, int]:
    """Return the index of each queue that a driver sets up."""
    counted = {
        Numbering.SPECIFICATION: BALLOON_FEATURES,
        Numbering.OFFERED: offered,
        Numbering.NEGOTIATED: negotiated,
    }[numbering]
    indexes = {Queue.INFLATE: vb.INFLATE_INDEX, Queue.DEFLATE: vb.DEFLATE_INDEX}
    position = vb.FIRST_OPTIONAL_INDEX
    for feature, queue in vb.OPTIONAL_QUEUES:
        if negotiated & feature:
            indexes[queue] = position
        position += bool(counted & feature)
    return indexes


@dataclass(frozen=True, slots=True)
class DriverOptions:
    """The kind of driver.

    Attributes:
        features: the features that the driver knows; without INDIRECT_DESC, chains are direct.
        numbering: the convention for optional queues.
        queue_size: descriptors of each ring.
        poison_value: the value that fills freed pages (0: init_on_free); None: they are not filled,
            and PAGE_POISON is not accepted, as in Linux.
        report_delay: seconds between reporting passes; None: only when `report` is called.
        stat_tags: statistics that the driver knows; kernels before 6.12 know fewer.
    """

    features: int = LINUX_FEATURES
    numbering: Numbering = Numbering.NEGOTIATED
    queue_size: int = 64
    poison_value: int | None = None
    report_delay: float | None = REPORT_DELAY
    stat_tags: tuple[int, ...] = tuple(StatTag)

"""TODO."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from protocol.virtio_balloon import (
    DEFLATE_INDEX,
    FIRST_OPTIONAL_INDEX,
    INFLATE_INDEX,
    OPTIONAL_QUEUES,
    Queue,
)

FIXED_QUEUES = {INFLATE_INDEX: Queue.INFLATE, DEFLATE_INDEX: Queue.DEFLATE}


@dataclass(frozen=True, slots=True)
class QueueMap:
    """Which ring index carries which queue; ambiguous if the optional ones cannot be told."""

    queues: dict[int, Queue]
    ambiguous: bool


def map_queues(features: int, started: Iterable[int]) -> QueueMap:
    """Tell the optional queues by their order.

    Specification, Linux and QEMU number them differently when one is missing, but all keep the
    order. So the started indexes >= 2 are matched, in order, with the negotiated queues. Where
    the counts differ, only the two fixed queues are mapped.
    """
    running = sorted(started)
    queues = {index: FIXED_QUEUES[index] for index in running if index in FIXED_QUEUES}
    indexes = [index for index in running if index >= FIRST_OPTIONAL_INDEX]
    optional = [queue for bit, queue in OPTIONAL_QUEUES if features & bit]
    if len(indexes) != len(optional):
        return QueueMap(queues, ambiguous=True)
    return QueueMap(queues | dict(zip(indexes, optional, strict=True)), ambiguous=False)

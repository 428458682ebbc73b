"""Determines which ring carries which queue. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from protocol.virtio_balloon import (
    DEFLATE_INDEX,
    FIRST_OPTIONAL_INDEX,
    INFLATE_INDEX,
    OPTIONAL_QUEUES,
    Queue,
)

_FIXED_QUEUES: Final = {INFLATE_INDEX: Queue.INFLATE, DEFLATE_INDEX: Queue.DEFLATE}


@dataclass(frozen=True, slots=True)
class QueueMap:
    """Queues by ring index. ambiguous: the optional queues cannot be told apart."""

    queues: dict[int, Queue]
    ambiguous: bool


def map_queues(features: int, started: Iterable[int]) -> QueueMap:
    """Map the optional queues by their order.

    The specification, Linux and QEMU number them differently if one is missing, but all keep their
    order. So the started indexes >= 2 are matched, in order, with the negotiated queues. If their
    numbers differ, only the two fixed queues are mapped.
    """
    running = sorted(started)
    queues = {index: _FIXED_QUEUES[index] for index in running if index in _FIXED_QUEUES}
    indexes = [index for index in running if index >= FIRST_OPTIONAL_INDEX]
    optional = [queue for bit, queue in OPTIONAL_QUEUES if features & bit]
    if len(indexes) != len(optional):
        return QueueMap(queues, ambiguous=True)
    return QueueMap(queues | dict(zip(indexes, optional, strict=True)), ambiguous=False)

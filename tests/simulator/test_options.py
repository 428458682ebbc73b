"""The indexes of the simulated driver's queues."""

from __future__ import annotations

import itertools

import pytest

from protocol.virtio_balloon import Queue
from vhost_balloon.simulator.options import Numbering, queue_indexes

STATS, HINT, REPORTING = 1 << 1, 1 << 3, 1 << 5


@pytest.mark.parametrize(
    ("numbering", "offered", "negotiated", "expected"),
    [
        (Numbering.SPECIFICATION, 0x3F, STATS | HINT | REPORTING, (2, 3, 4)),
        (Numbering.OFFERED, 0x3F, STATS | HINT | REPORTING, (2, 3, 4)),
        (Numbering.NEGOTIATED, 0x3F, STATS | HINT | REPORTING, (2, 3, 4)),
        (Numbering.SPECIFICATION, 0x37, STATS | REPORTING, (2, None, 4)),
        (Numbering.OFFERED, 0x37, STATS | REPORTING, (2, None, 3)),
        (Numbering.OFFERED, 0x3F, REPORTING, (None, None, 4)),
        (Numbering.NEGOTIATED, 0x3F, REPORTING, (None, None, 2)),
        (Numbering.NEGOTIATED, 0x3F, HINT | REPORTING, (None, 2, 3)),
        (Numbering.NEGOTIATED, 0x3F, 0, (None, None, None)),
    ],
)
def test_queue_indexes(
    numbering: Numbering, offered: int, negotiated: int, expected: tuple[int | None, ...]
) -> None:
    indexes = queue_indexes(numbering, offered, negotiated)
    assert (indexes[Queue.INFLATE], indexes[Queue.DEFLATE]) == (0, 1)
    optional = (Queue.STATS, Queue.FREE_PAGE, Queue.REPORTING)
    assert tuple(indexes.get(queue) for queue in optional) == expected


def test_all_feature_subsets_keep_the_order_of_the_queues() -> None:
    for numbering, bits in itertools.product(Numbering, range(8)):
        negotiated = sum(f for n, f in enumerate((STATS, HINT, REPORTING)) if bits >> n & 1)
        for offered in (0x3F, negotiated):
            values = list(queue_indexes(numbering, offered, negotiated).values())
            assert values == sorted(set(values))

"""Which ring carries which queue."""

from __future__ import annotations

import itertools
import operator

import pytest

from protocol.virtio_balloon import BalloonFeature, Queue
from tests.support.fakes.pure_front_end import ALL_BALLOON_FEATURES
from vhost_balloon.balloon.queue_map import map_queues

BITS = (BalloonFeature.STATS_VQ, BalloonFeature.FREE_PAGE_HINT, BalloonFeature.PAGE_REPORTING)
QUEUES = (Queue.STATS, Queue.FREE_PAGE, Queue.REPORTING)
SUBSETS = list(itertools.product((False, True), repeat=3))
OTHER_BITS = int(BalloonFeature.MUST_TELL_HOST | BalloonFeature.PAGE_POISON)
FIXED = {0: Queue.INFLATE, 1: Queue.DEFLATE}


def feature_bits(chosen: tuple[bool, ...]) -> int:
    return sum(bit for bit, is_chosen in zip(BITS, chosen, strict=True) if is_chosen)


def numbering(existing: tuple[bool, ...], negotiated: tuple[bool, ...]) -> dict[int, Queue]:
    """The negotiated queues by index, if existing queues are numbered from 2 without gaps."""
    indexes = itertools.count(2)
    numbered = {q: next(indexes) for q, exists in zip(QUEUES, existing, strict=True) if exists}
    chosen = (queue for queue, is_chosen in zip(QUEUES, negotiated, strict=True) if is_chosen)
    return {numbered[queue]: queue for queue in chosen}


@pytest.mark.parametrize("negotiated", SUBSETS)
@pytest.mark.parametrize("convention", ["spec", "offered", "negotiated"])
def test_every_subset_of_the_optional_queues_in_every_numbering(
    convention: str, negotiated: tuple[bool, ...]
) -> None:
    by_convention: dict[str, list[tuple[bool, ...]]] = {
        "spec": [(True, True, True)],
        "offered": [o for o in SUBSETS if all(map(operator.ge, o, negotiated))],
        "negotiated": [negotiated],
    }
    for offered in by_convention[convention]:
        optional = numbering(offered, negotiated)
        features = feature_bits(negotiated) | OTHER_BITS
        found = map_queues(features, [*optional, 1, 0])
        assert (found.queues, found.ambiguous) == (FIXED | optional, False)


@pytest.mark.parametrize("started", [[0, 1, 2], [0, 1, 2, 3], [0, 1], [0, 1, 4]])
def test_too_few_rings_serve_only_the_fixed_queues(started: list[int]) -> None:
    found = map_queues(ALL_BALLOON_FEATURES, started)
    assert (found.queues, found.ambiguous) == (FIXED, True)


def test_too_many_rings_serve_only_the_fixed_queues() -> None:
    found = map_queues(int(BalloonFeature.STATS_VQ), range(5))
    assert (found.queues, found.ambiguous) == (FIXED, True)


def test_only_started_rings_are_mapped() -> None:
    assert map_queues(0, []).queues == {}
    assert map_queues(0, [1]).queues == {1: Queue.DEFLATE}

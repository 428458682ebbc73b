"""Descriptors that were seen before their message was taken."""

from __future__ import annotations

import pytest

from tests.support.helpers import no_fds
from vhost_balloon.front_end.peeked import Peeked


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize("count", [0, 2])
def test_descriptors_that_came_as_seen_stay(count: int, lost: bool) -> None:
    seen = Peeked(b"data", no_fds(count), lost)
    assert seen.confirm(bool(count) or lost)
    assert (len(seen.fds), seen.fds_lost) == (count, lost)


@pytest.mark.parametrize(("count", "lost"), [(2, False), (2, True), (0, True)])
def test_descriptors_of_a_later_message_are_dropped(count: int, lost: bool) -> None:
    seen = Peeked(b"data", no_fds(count), lost)
    assert not seen.confirm(False)
    assert (seen.fds, seen.fds_lost) == ([], False)


def test_descriptors_that_came_unseen_are_lost() -> None:
    seen = Peeked(b"data")
    assert not seen.confirm(True)
    assert (seen.fds, seen.fds_lost) == ([], True)

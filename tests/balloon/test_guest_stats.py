"""Statistics buffers, and the age of a sample."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.virtio_balloon import StatTag
from vhost_balloon.balloon.guest_stats import GuestStats, parse_stats


def entries(*pairs: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<HQ", *pair) for pair in pairs)


def test_all_sixteen_tags_in_any_order() -> None:
    values = {tag: 1000 + tag for tag in StatTag}
    data = entries(*reversed(values.items()))
    assert len(data) == 160
    assert parse_stats(data) == (values, 0)


def test_unknown_tags_are_ignored_and_the_last_of_two_equal_ones_counts() -> None:
    data = entries((16, 1), (0xFFFF, 2), (4, 3), (4, 5))
    assert parse_stats(data) == ({StatTag.MEMFREE: 5}, 0)


@pytest.mark.parametrize("tail", range(1, 10))
def test_an_incomplete_entry_at_the_end_is_measured(tail: int) -> None:
    data = entries((5, 1 << 30)) + bytes(tail)
    assert parse_stats(data) == ({StatTag.MEMTOT: 1 << 30}, tail)
    assert parse_stats(bytes(tail)) == ({}, tail)


@given(st.binary(max_size=400))
def test_any_buffer_gives_known_tags_and_their_values(data: bytes) -> None:
    values, tail = parse_stats(data)
    assert tail == len(data) % 10
    for tag, value in values.items():
        assert entries((tag, value)) in data


def test_a_sample_has_the_hosts_time_and_an_age() -> None:
    stats = GuestStats()
    assert (stats.values, stats.last_update, stats.age(5.0)) == ({}, 0, None)
    stats.update({StatTag.MEMFREE: 1, StatTag.CACHES: 2}, wall=1700000000.9, monotonic=10.0)
    assert (stats.last_update, stats.age(12.5)) == (1700000000, 2.5)
    assert stats.age(9.0) == 0.0


def test_a_new_sample_replaces_the_old_one_entirely() -> None:
    stats = GuestStats()
    stats.update({StatTag.MEMFREE: 1, StatTag.CACHES: 2}, wall=1.0, monotonic=1.0)
    taken = {StatTag.MEMFREE: 3}
    stats.update(taken, wall=2.0, monotonic=2.0)
    taken[StatTag.CACHES] = 4
    assert stats.values == {StatTag.MEMFREE: 3}
    stats.clear()
    assert (stats.values, stats.last_update, stats.age(3.0)) == ({}, 0, None)

"""Statistics buffers, and the age of a sample."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.virtio_balloon import StatTag
from vhost_balloon.balloon.guest_stats import GuestStats, parse_stats, restore_stats


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


ALL_ONES = (1 << 64) - 1
UNITS = [1, 2, 512, 1000, 1024, 4096, 1 << 14, 1 << 16, 2 << 20, 1 << 30, 1 << 40, 1 << 63]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("tag", StatTag)
def test_all_ones_times_a_unit_is_no_value(tag: StatTag, unit: int) -> None:
    known = (StatTag.MEMTOT if tag is StatTag.MEMFREE else StatTag.MEMFREE, 7)
    unknown = (tag, ALL_ONES * unit % (1 << 64))
    assert parse_stats(entries(known, unknown)) == ({known[0]: 7}, 0)


def test_what_windows_sends_without_performance_counters() -> None:
    """The service's -1 and what it computes from it, and the driver's buffer of ones."""
    free = 3 << 30
    sent = [
        (0, -1 * 4096), (1, -1 * 4096), (2, -1), (3, -1), (4, free), (5, 4 << 30),
        (6, free + ALL_ONES // 2), (7, -1), (8, 0), (9, 0),
    ]  # fmt: skip
    values, _ = parse_stats(entries(*[(tag, value % (1 << 64)) for tag, value in sent]))
    assert {int(tag): value for tag, value in values.items()} == {
        4: free, 5: 4 << 30, 8: 0, 9: 0
    }  # fmt: skip
    assert parse_stats(b"\xff" * 100) == ({}, 0)


def test_a_32_bit_counter_that_becomes_negative_is_unknown() -> None:
    assert parse_stats(entries((3, -(1 << 31) % (1 << 64)))) == ({}, 0)


@pytest.mark.parametrize("value", [0, (1 << 32) - 1, 1 << 32, (1 << 53) + 1, (1 << 63) - 1])
def test_a_large_value_is_a_value(value: int) -> None:
    assert parse_stats(entries((3, value))) == ({StatTag.MINFLT: value}, 0)


def test_the_last_of_two_equal_tags_may_be_the_unknown_one() -> None:
    assert parse_stats(entries((4, 5), (4, ALL_ONES))) == ({}, 0)
    assert parse_stats(entries((4, ALL_ONES), (4, 5))) == ({StatTag.MEMFREE: 5}, 0)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, ALL_ONES))), st.binary(max_size=9))
def test_any_buffer_gives_the_last_known_value_of_each_known_tag(
    pairs: list[tuple[int, int]], tail: bytes
) -> None:
    last = dict(pairs)
    known = {tag: last[tag] for tag in StatTag if last.get(tag, ALL_ONES) < 1 << 63}
    assert parse_stats(entries(*pairs) + tail) == (known, len(tail))


def test_a_record_with_unknown_values_is_restored_without_them() -> None:
    stats = GuestStats()
    values = [[3, ALL_ONES], [4, 5], [0, ALL_ONES - 4095]]
    restore_stats(stats, {"values": values, "last-update": 7, "updated": 3.0})
    assert (stats.values, stats.last_update, stats.age(4.0)) == ({StatTag.MEMFREE: 5}, 7, 1.0)


def test_a_sample_has_the_hosts_time_and_an_age() -> None:
    stats = GuestStats()
    assert (stats.values, stats.last_update, stats.age(5.0)) == ({}, 0, None)
    stats.update({StatTag.MEMFREE: 1, StatTag.CACHES: 2}, wall=1700000000.9, now=10.0)
    assert (stats.last_update, stats.age(12.5)) == (1700000000, 2.5)
    assert stats.age(9.0) == 0.0


def test_a_new_sample_replaces_the_old_one_entirely() -> None:
    stats = GuestStats()
    stats.update({StatTag.MEMFREE: 1, StatTag.CACHES: 2}, wall=1.0, now=1.0)
    taken = {StatTag.MEMFREE: 3}
    stats.update(taken, wall=2.0, now=2.0)
    taken[StatTag.CACHES] = 4
    assert stats.values == {StatTag.MEMFREE: 3}
    stats.clear()
    assert (stats.values, stats.last_update, stats.age(3.0)) == ({}, 0, None)

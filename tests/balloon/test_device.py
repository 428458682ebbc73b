"""The device model: config space, target and poison."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.virtio_balloon import BalloonFeature, StatTag
from tests.support.helpers import GIB, MIB, PAGE
from vhost_balloon.balloon.device import MAX_PAGES, Balloon
from vhost_balloon.errors import FrontEndError

POISON = int(BalloonFeature.PAGE_POISON)
DEFLATE_ON_OOM = int(BalloonFeature.DEFLATE_ON_OOM)


def words(balloon: Balloon) -> tuple[int, ...]:
    """num_pages, actual, free_page_hint_cmd_id, poison_val."""
    data = balloon.read_config(0, 16)
    return tuple(int.from_bytes(data[i : i + 4], "little") for i in range(0, 16, 4))


def config(num_pages: int = 0, actual: int = 0, cmd_id: int = 0, poison: int = 0) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in (num_pages, actual, cmd_id, poison))


@pytest.fixture
def balloon() -> Balloon:
    balloon = Balloon()
    balloon.ram.share({0: GIB})
    return balloon


# The config space


def test_a_guest_can_write_only_actual_and_poison(balloon: Balloon) -> None:
    balloon.carry_out(GIB - 8 * PAGE)
    assert balloon.write_config(0, config(99, 5, 7, 0xAAAAAAAA), migration=False)
    assert words(balloon) == (8, 5, 0, 0xAAAAAAAA)
    assert (balloon.target_pages, balloon.held_pages) == (8, 5)
    assert (balloon.balloon_size, balloon.actual) == (5 * PAGE, GIB - 5 * PAGE)
    assert not balloon.write_config(0, config(0, 5, 0, 0xAAAAAAAA), migration=False)


def test_a_migration_writes_every_field_and_replaces_the_target(balloon: Balloon) -> None:
    balloon.carry_out(GIB // 2)
    assert balloon.write_config(0, config(99, 5, 7, 1), migration=True)
    assert words(balloon) == (99, 5, 7, 1)
    assert balloon.target == GIB - 99 * PAGE


@pytest.mark.parametrize("offset", range(16))
def test_bytes_are_read_and_written_at_their_offset(balloon: Balloon, offset: int) -> None:
    balloon.write_config(offset, b"\x5a", migration=True)
    expected = bytes(offset) + b"\x5a" + bytes(15 - offset)
    assert balloon.read_config(0, 16) == expected
    assert balloon.read_config(offset, 16 - offset) == expected[offset:]
    assert balloon.read_config(offset, 1) == b"\x5a"


def test_a_single_field_can_be_written(balloon: Balloon) -> None:
    assert balloon.write_config(4, (3).to_bytes(4, "little"), migration=False)
    assert words(balloon) == (0, 3, 0, 0)


@pytest.mark.parametrize(("offset", "size"), [(0, 0), (0, 17), (16, 1), (15, 2), (1 << 31, 4)])
def test_outside_the_config_space_is_refused(balloon: Balloon, offset: int, size: int) -> None:
    with pytest.raises(FrontEndError, match="outside"):
        balloon.read_config(offset, size)
    with pytest.raises(FrontEndError, match="outside"):
        balloon.write_config(offset, bytes(size), migration=True)
    assert words(balloon) == (0, 0, 0, 0)


# The target


@pytest.mark.parametrize(
    ("target", "pages", "effective"),
    [
        (GIB, 0, GIB),
        (GIB + MIB, 0, GIB),  # clamped above guest memory, as QEMU does
        (1 << 63, 0, GIB),
        (GIB // 2, GIB // 2 // PAGE, GIB // 2),
        (GIB - PAGE + 1, 0, GIB),  # whole pages only, rounded in the guest's favour
        (1, GIB // PAGE - 1, PAGE),
    ],
)
def test_num_pages_follows_from_the_target(
    balloon: Balloon, target: int, pages: int, effective: int
) -> None:
    assert balloon.carry_out(target) is (pages != 0)
    assert words(balloon)[0] == pages
    assert balloon.target == effective
    assert not balloon.carry_out(target)


def test_only_an_order_changes_num_pages(balloon: Balloon) -> None:
    balloon.carry_out(GIB // 2)
    balloon.write_config(4, (5).to_bytes(4, "little"), migration=False)
    for regions in ({0: GIB, 1 << 32: GIB}, {0: GIB}, {0: GIB // 4}, {}, {0: GIB}):
        balloon.ram.share(regions)
        assert balloon.target_pages == GIB // 2 // PAGE
        assert balloon.actual == max(sum(regions.values()) - 5 * PAGE, 0)
        assert balloon.target == max(sum(regions.values()) - GIB // 2, 0)
    balloon.ram.stated = GIB // 4
    assert (balloon.target_pages, balloon.actual) == (GIB // 2 // PAGE, GIB // 4 - 5 * PAGE)


def test_an_order_waits_in_bytes() -> None:
    balloon = Balloon(GIB)
    assert (balloon.target, balloon.target_pages) == (GIB, 0)
    balloon.ram.share({0: 2 * GIB})
    assert (balloon.target, balloon.target_pages) == (GIB, 0)
    balloon.order = 3 * GIB
    assert balloon.target == 2 * GIB
    assert balloon.carry_out(GIB)
    assert balloon.snapshot()[0] is None
    assert (balloon.target, balloon.target_pages) == (GIB, GIB // PAGE)


def test_without_an_order_the_guest_keeps_its_memory(balloon: Balloon) -> None:
    assert (balloon.target, balloon.actual, balloon.balloon_size) == (GIB, GIB, 0)
    balloon.ram.share({0: 2 * GIB})
    assert balloon.target == 2 * GIB


def test_num_pages_has_32_bits() -> None:
    balloon = Balloon()
    balloon.ram.share({0: 1 << 50})
    assert balloon.carry_out(1)
    assert words(balloon)[0] == MAX_PAGES == 0xFFFF_FFFF


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("order"), st.integers(1, 1 << 50)),
            st.tuples(st.just("memory"), st.integers(0, 1 << 66)),
            st.tuples(st.just("actual"), st.integers(0, 0xFFFF_FFFF)),
        )
    )
)
def test_no_order_of_events_gives_a_figure_outside_memory(steps: list[tuple[str, int]]) -> None:
    balloon = Balloon()
    for kind, value in steps:
        before = words(balloon)
        if kind == "order":
            assert balloon.carry_out(value) is (before[0] != words(balloon)[0])
            expected = min(max(balloon.memory_size - value, 0) // PAGE, MAX_PAGES)
            assert words(balloon)[0] == expected
        elif kind == "memory":
            balloon.ram.share({0: value})
            assert words(balloon) == before
        else:
            balloon.write_config(4, value.to_bytes(4, "little"), migration=False)
        assert 0 <= balloon.actual <= balloon.memory_size
        assert 0 <= balloon.target <= balloon.memory_size


@pytest.mark.parametrize(
    ("features", "total"), [(0, GIB // 2 + 8 * PAGE), (DEFLATE_ON_OOM, GIB // 2)]
)
def test_a_sample_tells_what_the_guest_has(balloon: Balloon, features: int, total: int) -> None:
    """Linux takes ballooned pages out of its total only without DEFLATE_ON_OOM."""
    balloon.features = features
    balloon.ram.share({0: GIB // 2, 1 << 32: GIB})
    balloon.write_config(4, (8).to_bytes(4, "little"), migration=False)
    balloon.stats.update({StatTag.MEMTOT: GIB // 2}, 1.0, 1.0)
    balloon.sampled()
    assert (balloon.ram.total, balloon.memory_size) == (total, GIB // 2)
    balloon.stats.update({}, 2.0, 2.0)
    balloon.sampled()
    assert (balloon.ram.total, balloon.memory_size) == (None, GIB // 2)


def test_a_device_begins_anew(balloon: Balloon) -> None:
    balloon.ram.stated, balloon.features = GIB // 2, POISON
    balloon.carry_out(GIB // 4)
    balloon.write_config(4, (5).to_bytes(4, "little") + bytes(4) + b"\x01\0\0\0", migration=False)
    balloon.stats.update({StatTag.MEMTOT: GIB}, 1.0, 1.0)
    balloon.begin(GIB // 8)
    assert words(balloon) == (0, 0, 0, 0)
    assert (balloon.features, balloon.stats.values, balloon.memory_size) == (0, {}, 0)
    assert (balloon.order, balloon.ram.stated) == (GIB // 8, GIB // 2)


# Poison, new drivers and resets


@pytest.mark.parametrize(
    ("features", "poison", "may_drop"),
    [
        (0, 0, True),
        (0, 1, True),
        (POISON, 0, True),
        (POISON, 0xAAAAAAAA, False),
        (POISON, 1, False),
    ],
)
def test_reported_pages_keep_a_negotiated_poison(
    balloon: Balloon, features: int, poison: int, may_drop: bool
) -> None:
    balloon.write_config(0, config(poison=poison), migration=False)
    assert balloon.may_drop_reported  # the value comes before the features
    balloon.features = features
    assert balloon.may_drop_reported is may_drop
    balloon.new_driver()
    assert balloon.may_drop_reported is may_drop
    balloon.reset()
    assert balloon.may_drop_reported
    assert words(balloon)[3] == 0


def test_a_new_driver_has_an_empty_balloon_and_keeps_the_target(balloon: Balloon) -> None:
    balloon.carry_out(GIB // 2)
    balloon.write_config(4, b"\x05\0\0\0", migration=False)
    balloon.stats.update({StatTag.MEMFREE: 1}, 1.0, 1.0)
    assert balloon.new_driver()
    assert (balloon.balloon_size, balloon.target) == (0, GIB // 2)
    assert (balloon.stats.values, balloon.stats.last_update) == ({}, 0)
    assert not balloon.new_driver()
    assert not balloon.reset()
    assert balloon.target == GIB // 2

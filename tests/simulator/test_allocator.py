"""The simulated guest's page allocator."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vhost_balloon.simulator.allocator import BLOCK_SIZE, GuestOutOfMemory, PageAllocator

MIB = 1 << 20
PAGE = 4096


def test_memory_is_taken_from_both_ends_and_given_back() -> None:
    allocator = PageAllocator([(0, 16 * MIB), (64 * MIB, 16 * MIB)])
    assert allocator.take(20 * MIB) == [(0, 16 * MIB), (64 * MIB, 4 * MIB)]
    assert allocator.take(2 * MIB, from_top=True) == [(78 * MIB, 2 * MIB)]
    with pytest.raises(GuestOutOfMemory):
        allocator.take(11 * MIB)
    assert allocator.free == 10 * MIB
    allocator.give(78 * MIB, 2 * MIB)
    assert allocator.free_extents == [(68 * MIB, 12 * MIB)]


def test_only_whole_blocks_are_reported_the_highest_first() -> None:
    allocator = PageAllocator([(MIB, 15 * MIB)])
    assert allocator.unreported_blocks() == [12 * MIB, 8 * MIB, 4 * MIB]


def test_a_reported_block_is_unreported_once_a_page_of_it_is_used() -> None:
    allocator = PageAllocator([(0, 16 * MIB)])
    for block in allocator.unreported_blocks():
        allocator.give(*allocator.take_block(block), reported=True)
    assert allocator.unreported_blocks() == []
    assert allocator.reported == 16 * MIB
    [extent] = allocator.take(PAGE)
    allocator.give(*extent)
    assert allocator.unreported_blocks() == [0]


def test_adjacent_regions_are_not_merged() -> None:
    allocator = PageAllocator([(0, 6 * MIB), (6 * MIB, 6 * MIB)])
    assert allocator.take(12 * MIB) == [(0, 6 * MIB), (6 * MIB, 6 * MIB)]
    allocator.give(6 * MIB, 6 * MIB)
    allocator.give(0, 6 * MIB)
    assert allocator.unreported_blocks() == [8 * MIB, 0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 2000), st.integers(0, 99)), max_size=40))
def test_no_page_is_lost_or_given_out_twice(steps: list[tuple[bool, int, int]]) -> None:
    allocator = PageAllocator([(0, 8 * MIB), (8 * MIB, 8 * MIB), (32 * MIB, 8 * MIB)])
    held: list[tuple[int, int]] = []
    for from_top, pages, choice in steps:
        if choice % 3 == 0 and held:
            allocator.give(*held.pop(choice % len(held)))
        elif choice % 3 == 1 and (blocks := allocator.unreported_blocks()):
            allocator.give(*allocator.take_block(blocks[choice % len(blocks)]), reported=True)
        elif allocator.free >= pages * PAGE:
            held += allocator.take(pages * PAGE, from_top=from_top)
        everything = sorted(held + allocator.free_extents)
        assert sum(length for _, length in everything) == 24 * MIB
        ends = [address + length for address, length in everything]
        assert all(end <= start for end, (start, _) in zip(ends, everything[1:], strict=False))
        reportable = len(allocator.unreported_blocks()) * BLOCK_SIZE + allocator.reported
        assert reportable <= allocator.free

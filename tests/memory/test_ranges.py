"""Range arithmetic, compared with sets of addresses."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vhost_balloon.memory.ranges import (
    Range,
    align_inward,
    align_outward,
    merge,
    merge_numbers,
    overlap,
    split,
    subtract,
    total,
)

LIMIT = 64
ranges = st.lists(
    st.tuples(st.integers(0, LIMIT), st.integers(1, 12)).map(lambda r: (r[0], r[0] + r[1])),
    max_size=12,
)
alignments = st.sampled_from([1, 2, 4, 8, 16])


def members(items: list[Range]) -> set[int]:
    return {address for start, end in items for address in range(start, end)}


def assert_canonical(items: list[Range]) -> None:
    """All ranges are sorted, not empty, disjoint, and do not touch."""
    assert all(start < end for start, end in items)
    assert all(before[1] < after[0] for before, after in pairwise(items))


@given(ranges)
def test_merge(items: list[Range]) -> None:
    merged = merge(items)
    assert_canonical(merged)
    assert members(merged) == members(items)
    assert total(merged) == len(members(items))


@given(
    st.lists(st.integers(0, LIMIT)) | st.integers(0, LIMIT).map(lambda n: list(range(n, n + 5))),
    st.integers(0, 3),
)
def test_merge_numbers(numbers: list[int], shift: int) -> None:
    merged = merge_numbers(numbers, shift)
    assert_canonical(merged)
    assert {address >> shift for address in members(merged)} == set(numbers)
    assert total(merged) == len(set(numbers)) << shift


def test_merge_numbers_keeps_the_highest_page_number_whole() -> None:
    assert merge_numbers([0xFFFF_FFFF, 0], 12) == [(0, 4096), (0xFFFF_FFFF << 12, 1 << 44)]


@given(ranges, ranges)
def test_subtract(items: list[Range], holes: list[Range]) -> None:
    named = merge(items)
    left = subtract(named, merge(holes))
    assert_canonical(left)
    assert members(left) == members(items) - members(holes)
    assert (left is named) is (members(left) == members(items))


@given(ranges, ranges)
def test_overlap(items: list[Range], holes: list[Range]) -> None:
    assert overlap(merge(items), holes) is bool(members(items) & members(holes))


@given(st.integers(0, LIMIT), st.integers(0, LIMIT), alignments)
def test_align_inward(start: int, length: int, alignment: int) -> None:
    units = {
        unit
        for unit in range(LIMIT * 3)
        if start <= unit * alignment and (unit + 1) * alignment <= start + length
    }
    aligned = align_inward(start, start + length, alignment)
    expected = {unit * alignment + offset for unit in units for offset in range(alignment)}
    assert members([] if aligned is None else [aligned]) == expected


@given(st.integers(0, LIMIT), st.integers(1, LIMIT), alignments)
def test_align_outward(start: int, length: int, alignment: int) -> None:
    low, high = align_outward(start, start + length, alignment)
    touched = {address // alignment for address in range(start, start + length)}
    assert low % alignment == high % alignment == 0
    assert {address // alignment for address in range(low, high)} == touched


@given(st.integers(0, LIMIT), st.integers(0, LIMIT), st.integers(1, 16))
def test_split(start: int, length: int, piece: int) -> None:
    pieces = list(split(start, start + length, piece))
    assert [address for cut in pieces for address in range(*cut)] == [*range(start, start + length)]
    assert all(cut[1] - cut[0] == piece for cut in pieces[:-1])
    assert all(0 < cut[1] - cut[0] <= piece for cut in pieces)

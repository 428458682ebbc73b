"""Vectors of ranges, compared with the plain forms of memory.ranges."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.helpers import PAGE
from vhost_balloon.memory.ranges import Range, merge, merge_numbers, overlap, subtract, total
from vhost_balloon.memory.vector import MAX_RANGES, RangeVector, page_vector

TOP_PFN = 0xFFFF_FFFF
NUMBERS = st.lists(
    st.one_of(st.integers(0, 40), st.integers(0, TOP_PFN), st.integers(TOP_PFN - 40, TOP_PFN)),
    max_size=50,
) | st.builds(
    lambda first, count: [*range(first, first + count)], st.integers(0, 40), st.integers(0, 99)
)
RUNS = st.lists(
    st.builds(lambda at, count: (at, at + count), st.integers(0, 60), st.integers(1, 20)),
    max_size=5,
)
LIMIT = 64
SPANS = st.lists(
    st.builds(lambda at, size: (at, at + size), st.integers(0, LIMIT), st.integers(1, 12)),
    max_size=12,
).map(merge)


@st.composite
def vectors(draw: st.DrawFn) -> RangeVector:
    """Of bytes or of pages, with or without lengths."""
    if draw(st.booleans()):
        return page_vector(draw(NUMBERS))
    unit = 1 << draw(st.sampled_from([0, 3]))
    return RangeVector.of([(start * unit, end * unit) for start, end in draw(SPANS)])


@given(NUMBERS)
def test_page_numbers_become_the_same_ranges_as_in_the_plain_form(numbers: list[int]) -> None:
    vector = page_vector(numbers)
    assert list(vector) == merge_numbers(numbers, 12)
    if len(vector) == len(numbers):
        assert vector.lengths is None, "single pages need none"


@given(NUMBERS, RUNS)
def test_page_numbers_and_runs(numbers: list[int], runs: list[Range]) -> None:
    pages = [(number * PAGE, (number + 1) * PAGE) for number in numbers]
    expected = merge([*pages, *[(start * PAGE, end * PAGE) for start, end in runs]])
    assert list(page_vector(numbers, runs)) == expected


@pytest.mark.parametrize("step", [1, 2, 0])
def test_as_many_pages_as_a_vector_may_have(step: int) -> None:
    numbers = [TOP_PFN - step * number for number in range(MAX_RANGES)]
    assert list(page_vector(numbers)) == merge_numbers(numbers, 12)


@given(vectors())
def test_the_whole_of_a_vector(vector: RangeVector) -> None:
    ranges = list(vector)
    assert len(vector) == len(ranges)
    assert vector.total() == total(ranges)
    assert list(RangeVector.of(ranges)) == ranges
    if ranges:
        assert (vector.start, vector.end) == (ranges[0][0], ranges[-1][1])


@given(vectors(), st.integers(0, 60), st.integers(0, 60))
def test_a_part_of_a_vector(vector: RangeVector, first: int, stop: int) -> None:
    assert list(vector.part(first, stop)) == list(vector)[first:stop]


@given(vectors(), st.integers(0, 80) | st.integers(0, 1 << 45), st.integers(-2, 2))
def test_places_in_a_vector(vector: RangeVector, address: int, offset: int) -> None:
    ranges = list(vector)
    near = [edge for each in ranges for edge in each]
    for place in (address, *[max(edge + offset, 0) for edge in near]):
        assert vector.below(place) == sum(start < place for start, _ in ranges)
        assert vector.ending_by(place) == sum(end <= place for _, end in ranges)


@given(vectors(), SPANS, st.sampled_from([1, 8, PAGE]))
def test_overlaps(vector: RangeVector, spans: list[Range], unit: int) -> None:
    holes = [(start * unit, end * unit) for start, end in spans]
    assert vector.overlaps(holes) is overlap(list(vector), holes)


@given(vectors(), SPANS, st.sampled_from([1, 8, PAGE]))
def test_holes_are_cut_out(vector: RangeVector, spans: list[Range], unit: int) -> None:
    holes = [(start * unit, end * unit) for start, end in spans]
    assert list(vector.without(holes)) == subtract(list(vector), holes)


@given(vectors(), st.sampled_from([1, 2, 8, 16, PAGE, 2 * PAGE]))
def test_alignment(vector: RangeVector, alignment: int) -> None:
    edges = [edge for each in vector for edge in each]
    assert vector.is_aligned(alignment) is not any(edge % alignment for edge in edges)


@given(vectors(), st.integers(-64, 1 << 47))
def test_an_array_of_struct_iovec(vector: RangeVector, origin: int) -> None:
    """An origin is negative where a region's guest addresses are above its mapping."""
    origin = max(origin, -vector.start) if vector else origin
    filled = array("Q", [7] * 2 * (len(vector) + 1))
    vector.fill(filled, origin)
    pairs = [(start + origin, end - start) for start, end in vector]
    assert filled.tolist() == [word for pair in pairs for word in pair] + [7, 7]

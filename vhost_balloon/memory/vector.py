"""Sorted ranges in parallel arrays, for the path of every request. Pure.

A request may name thousands of single pages. With a tuple for each, every step between the ring and
the system call takes as long as a twentieth of the kernel's work; and so does each look at an
integer of a list, once that work has displaced it from the processor's cache. Here a step is an
operation in C on whole arrays of machine words, or on one large integer with 64 bits for each page.
ranges.py has the plain forms: the tests compare the two, and rare cases use them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import compress
from typing import Final

from protocol.virtio_balloon import PFN_SHIFT
from vhost_balloon.memory.ranges import Range, merge, subtract

MAX_RANGES: Final = 9 << 10
"""Most pages and runs for page_vector(), and most ranges for an array of struct iovec."""

_LANE: Final = 64
"""Bits for each number in a large integer."""
_ONES: Final = sum(1 << _LANE * lane for lane in range(MAX_RANGES))
"""1 in each lane. Shifted right by whole lanes, it has as many fewer."""
_TOP: Final = 1 << _LANE - 1


class RangeVector:
    """Ranges, sorted and disjoint.

    starts, lengths: of each, in units of 1 << shift bytes; arrays of format Q. lengths is None if
    each is one unit.
    """

    __slots__ = ("lengths", "shift", "starts")

    def __init__(
        self, starts: array[int], lengths: array[int] | None = None, shift: int = 0
    ) -> None:
        self.starts = starts
        self.lengths = lengths
        self.shift = shift

    @classmethod
    def of(cls, ranges: Sequence[Range]) -> RangeVector:
        """Pairs of start and end in bytes that are sorted and disjoint already."""
        starts = array("Q", [start for start, _ in ranges])
        return cls(starts, array("Q", [end - start for start, end in ranges]))

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[Range]:
        """Pairs of start and end in bytes."""
        shift = self.shift
        for start, length in zip(self.starts, self._lengths(), strict=True):
            yield start << shift, start + length << shift

    def _lengths(self) -> array[int]:
        return array("Q", [1]) * len(self.starts) if self.lengths is None else self.lengths

    @property
    def start(self) -> int:
        """Where the first range starts, in bytes."""
        return self.starts[0] << self.shift

    @property
    def end(self) -> int:
        """Where the last range ends, in bytes."""
        return self._end(-1)

    def _end(self, position: int) -> int:
        length = 1 if self.lengths is None else self.lengths[position]
        return self.starts[position] + length << self.shift

    def total(self) -> int:
        """Bytes."""
        return (len(self.starts) if self.lengths is None else sum(self.lengths)) << self.shift

    def part(self, first: int, stop: int) -> RangeVector:
        """The ranges from number first to before number stop."""
        lengths = self.lengths and self.lengths[first:stop]
        return RangeVector(self.starts[first:stop], lengths, self.shift)

    def below(self, address: int) -> int:
        """How many ranges start below an address in bytes."""
        return bisect_left(self.starts, -(-address >> self.shift))

    def ending_by(self, address: int) -> int:
        """How many ranges end at or below an address in bytes."""
        count = self.below(address)
        return count - 1 if count and self._end(count - 1) > address else count

    def is_aligned(self, alignment: int) -> bool:
        """Whether all starts and lengths are multiples of alignment, a power of two, in bytes."""
        units = alignment - 1 >> self.shift
        if not units or not self.starts:
            return True
        numbers = self.starts + (self.lengths or array("Q", [1]))
        return not any([number & units for number in numbers])

    def overlaps(self, holes: Sequence[Range]) -> bool:
        """Whether any hole overlaps a range; holes are in bytes, sorted and disjoint."""
        if not holes or not self.starts:
            return False
        start, end = self.start, self.end
        if end <= holes[0][0] or holes[-1][1] <= start:
            return False
        if len(self.starts) > 1:
            return any([self.below(hole[1]) > self.ending_by(hole[0]) for hole in holes])
        position = bisect_left(holes, (end,))  # earlier holes start below end
        return holes[position - 1][1] > start

    def without(self, holes: Sequence[Range]) -> RangeVector:
        """The parts of the ranges outside holes, which are in bytes, sorted, disjoint and few. Only
        ranges that a hole overlaps are cut one by one. Returns self if there are none."""
        if not self.overlaps(holes):
            return self
        shift = self.shift
        starts = array("Q", [start << shift for start in self.starts])
        lengths = array("Q", [length << shift for length in self._lengths()])
        hit = [(self.ending_by(start), self.below(end)) for start, end in holes]
        for first, stop in reversed(merge([each for each in hit if each[0] < each[1]])):
            left = subtract(list(self.part(first, stop)), holes)
            starts[first:stop] = array("Q", [start for start, _ in left])
            lengths[first:stop] = array("Q", [end - start for start, end in left])
        return RangeVector(starts, lengths)

    def fill(self, vector: array[int], origin: int) -> None:
        """Fill in an array of struct iovec: the ranges, moved by origin bytes. No sum may be
        negative, or 2^64 and above."""
        count, shift = len(self.starts), self.shift
        starts = int.from_bytes(self.starts, "little")
        ones = _ONES >> _LANE * (MAX_RANGES - count)
        moved = (starts << shift) + origin * ones
        vector[0 : 2 * count : 2] = array("Q", moved.to_bytes(_LANE // 8 * count, "little"))
        if self.lengths is None:
            vector[1 : 2 * count : 2] = array("Q", [1 << shift]) * count
        else:
            vector[1 : 2 * count : 2] = array("Q", [length << shift for length in self.lengths])


def page_vector(numbers: list[int], runs: Sequence[Range] = ()) -> RangeVector:
    """Merge PFNs (any order, duplicates allowed) and runs of them (pairs of the first and the one
    after the last); at most MAX_RANGES of both together."""
    if len(runs) == 1 and not numbers:  # the usual request
        start, end = runs[0]
        return RangeVector(array("Q", (start,)), array("Q", (end - start,)), PFN_SHIFT)
    firsts = lasts = array("Q", sorted(numbers))
    if runs:
        firsts = array("Q", sorted([*firsts, *[start for start, _ in runs]]))
        lasts = array("Q", sorted([*lasts, *[end - 1 for _, end in runs]]))
    lanes = len(firsts) - 1
    if lanes < 1 and not runs:
        return RangeVector(firsts, None, PFN_SHIFT)
    # There is a gap where the first page in a place is higher by more than 1 than the last page in
    # the place before, although both are sorted separately: as many runs have ended as have begun.
    # Subtract in a lane for each place. The highest bit of a lane tells whether its gap is more
    # than 1, once enough is added to carry into that bit.
    words = int.from_bytes(firsts, "little")
    ending = words if firsts is lasts else int.from_bytes(lasts, "little")
    gaps = (words >> _LANE) - (ending & (1 << _LANE * lanes) - 1)
    ones = _ONES >> _LANE * (MAX_RANGES - lanes)
    apart = gaps + ones * (_TOP - 2) & ones * _TOP
    if apart == ones * _TOP and not runs:
        return RangeVector(firsts, None, PFN_SHIFT)
    is_last = apart.to_bytes(_LANE // 8 * lanes, "little")[_LANE // 8 - 1 :: _LANE // 8]
    starts = [firsts[0], *compress(firsts[1:], is_last)]
    stops = [*compress(lasts, is_last), lasts[-1]]
    lengths = [last - first + 1 for first, last in zip(starts, stops, strict=True)]
    return RangeVector(array("Q", starts), array("Q", lengths), PFN_SHIFT)

"""Arithmetic on byte ranges: merging PFNs and ranges, clipping, aligning. Pure.

The path of every request uses vector.py instead. What that has in a fast form is here as well,
plain enough to be its reference: the tests compare the two.

A range is a pair (start, end) of byte addresses, end exclusive, start < end. Returned lists are
sorted and disjoint, and touching ranges are merged.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence

Range = tuple[int, int]


def merge(ranges: Iterable[Range]) -> list[Range]:
    """Sort ranges and merge those that overlap or touch."""
    merged: list[Range] = []
    last_start = last_end = -1
    for start, end in sorted(ranges):
        if start <= last_end:
            if end > last_end:
                last_end = end
                merged[-1] = (last_start, last_end)
        else:
            last_start, last_end = start, end
            merged.append((start, end))
    return merged


def merge_numbers(numbers: list[int], shift: int) -> list[Range]:
    """Turn page numbers (any order, duplicates allowed) into ranges of 1 << shift byte pages."""
    if not numbers:
        return []
    ordered = sorted(numbers)
    merged: list[Range] = []
    first = previous = ordered[0]
    for number in ordered:
        if number - previous > 1:
            merged.append((first << shift, (previous + 1) << shift))
            first = number
        previous = number
    merged.append((first << shift, (previous + 1) << shift))
    return merged


def total(ranges: Iterable[Range]) -> int:
    """Bytes in disjoint ranges."""
    return sum([end - start for start, end in ranges])


def align_inward(start: int, end: int, alignment: int) -> Range | None:
    """The whole aligned units inside [start, end), or None; alignment is a power of two."""
    start = (start + alignment - 1) & -alignment
    end &= -alignment
    return (start, end) if start < end else None


def align_outward(start: int, end: int, alignment: int) -> Range:
    """The aligned units that [start, end) touches; alignment is a power of two."""
    return start & -alignment, (end + alignment - 1) & -alignment


def overlap(ranges: Sequence[Range], holes: Iterable[Range]) -> bool:
    """Whether a hole overlaps a range. ranges are sorted and disjoint; holes should be few."""
    for start, end in holes:
        position = bisect_left(ranges, (end,))  # earlier ranges start below end
        if position and ranges[position - 1][1] > start:
            return True
    return False


def subtract(ranges: list[Range], holes: Sequence[Range]) -> list[Range]:
    """The parts of ranges outside holes; both are sorted and disjoint. Returns ranges itself if no
    hole overlaps it."""
    if not overlap(ranges, holes):
        return ranges
    left: list[Range] = []
    for start, end in ranges:
        # The first hole that may overlap this range: the last one that starts before it.
        position = max(bisect_right(holes, (start,)) - 1, 0)
        while position < len(holes) and holes[position][0] < end:
            hole_start, hole_end = holes[position]
            if hole_end > start:
                if hole_start > start:
                    left.append((start, hole_start))
                start = hole_end
            position += 1
        if start < end:
            left.append((start, end))
    return left


def split(start: int, end: int, piece: int) -> Iterable[Range]:
    """Cut [start, end) into pieces of piece bytes, counted from start."""
    while start < end:
        stop = min(start + piece, end)
        yield start, stop
        start = stop

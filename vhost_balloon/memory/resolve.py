"""Resolves the ranges that a guest named into the parts of regions that may be discarded.

It decides; memory.discard acts.
"""

from __future__ import annotations

from typing import NamedTuple

from vhost_balloon.figures.discard_policy import DiscardPolicy
from vhost_balloon.figures.refusal import Refusal
from vhost_balloon.memory.gathering import Gathering, Grid
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.memory.ranges import Range, align_inward
from vhost_balloon.memory.region import MappedRegion, Part, refusal
from vhost_balloon.memory.vector import RangeVector


class Resolved(NamedTuple):
    """parts: what may be discarded. refused: bytes of the rest, by reason. inside: bytes of the
    named ranges that are guest memory."""

    parts: list[Part]
    refused: dict[str, int]
    inside: int


def resolve(
    memory: GuestMemory,
    ranges: RangeVector,
    protected: list[Range],
    policy: DiscardPolicy,
    gathering: Gathering | None = None,
) -> Resolved:
    """Resolve guest ranges.

    protected (sorted and disjoint) is never discarded. Partial host pages are refused, or kept in
    gathering, if there is one, until the rest of each page comes.
    """
    refused: dict[str, int] = {}
    allowed = ranges.without(protected)
    outside = left = allowed.total()
    parts: list[Part] = []
    for mapped, named in memory.by_region(allowed):
        size = left if named is allowed else named.total()
        outside -= size
        if not isinstance(mapped, MappedRegion):
            reason = Refusal.UNTOUCHED
        elif (rule := refusal(policy, mapped.filesystem)) is not None:
            reason = rule
        else:
            if gathering is None or mapped.grid is None:
                whole = _whole_pages(mapped, named)
                gone = size if whole is named else whole.total()
                size -= gone
            else:
                whole = _completed_pages(mapped.grid, named, gathering)
                gone = whole.total()
                size -= sum(mapped.grid.clip(start, end) for start, end in named)
            if whole:
                parts.append(Part(mapped, whole, gone))
            if not size:
                continue
            reason = _partial_page_refusal(mapped)
        refused[reason] = refused.get(reason, 0) + size
    if outside:
        refused[Refusal.OUTSIDE] = outside
    if allowed is ranges:
        return Resolved(parts, refused, left - outside)
    refused[Refusal.RING] = ranges.total() - left
    return Resolved(parts, refused, memory.inside(ranges))


def _whole_pages(mapped: MappedRegion, named: RangeVector) -> RangeVector:
    """The whole host pages in ranges of the region. Returns named itself if that is everything."""
    size, to_file = mapped.page_size, mapped.to_file
    if not to_file % size and named.is_aligned(size):  # always so unless host pages are huge
        return named
    found = (align_inward(start + to_file, end + to_file, size) for start, end in named)
    whole = [(each[0] - to_file, each[1] - to_file) for each in found if each is not None]
    return RangeVector.of(whole)


def _completed_pages(grid: Grid, named: RangeVector, gathering: Gathering) -> RangeVector:
    """The host pages that ranges of the region complete, as a range each."""
    pages = sorted(gathering.add(grid, named))
    return RangeVector.of([(page, page + grid.size) for page in pages])


def _partial_page_refusal(mapped: MappedRegion) -> str:
    return Refusal.PARTIAL_HUGE_PAGE if mapped.filesystem.is_hugetlb else Refusal.UNALIGNED

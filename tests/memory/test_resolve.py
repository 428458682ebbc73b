"""Which parts of the ranges that a guest named may be discarded."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.vhost_user_payloads import Region
from tests.support.helpers import GIB, HUGE, MIB, PAGE, USER, mapped, mapped_regions, memfd, pieces
from tests.support.huge_pages import HugePages
from vhost_balloon.figures.discard_policy import DiscardPolicy
from vhost_balloon.figures.refusal import Refusal
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.memory.ranges import Range, merge, total
from vhost_balloon.memory.region import MappedRegion, UntouchedRegion
from vhost_balloon.memory.resolve import resolve
from vhost_balloon.memory.syscalls import HUGETLBFS_MAGIC, TMPFS_MAGIC, Filesystem
from vhost_balloon.memory.vector import RangeVector, page_vector

TOP = 1 << 64
POLICY = DiscardPolicy()


def resolved(memory: GuestMemory, ranges: list[Range]) -> tuple[list[Range], dict[str, int]]:
    """File ranges to discard, and the bytes refused by reason."""
    parts, refused, _ = resolve(memory, RangeVector.of(ranges), [], POLICY)
    return [(offset, offset + length) for _, offset, length in pieces(parts)], refused


def test_ranges_become_file_ranges_and_bytes_outside_memory_are_refused(
    memory: GuestMemory,
) -> None:
    gone, refused = resolved(memory, [(0, 8 * PAGE), (4 * GIB - PAGE, 4 * GIB + PAGE)])
    assert gone == [(2 * MIB, 2 * MIB + 8 * PAGE), (0, PAGE)]
    assert refused == {Refusal.OUTSIDE: PAGE}


def test_a_range_over_all_addresses_is_cut_to_the_regions(memory: GuestMemory) -> None:
    gone, refused = resolved(memory, [(0, TOP - PAGE)])
    assert gone == [(2 * MIB, 3 * MIB), (0, MIB)]
    assert refused == {Refusal.OUTSIDE: TOP - PAGE - 2 * MIB}


def test_a_range_may_end_beyond_the_top_of_the_address_space(memory: GuestMemory) -> None:
    """As a report may name it: a start below 2^64, and a length."""
    top = mapped(memfd(PAGE), guest=TOP - PAGE, size=PAGE, user=TOP - PAGE)
    memory.add(top)
    gone, refused = resolved(memory, [(TOP - 2 * PAGE, TOP + PAGE)])
    assert (gone, refused) == ([(0, PAGE)], {Refusal.OUTSIDE: 2 * PAGE})


def test_partial_pages_are_kept(memory: GuestMemory) -> None:
    assert resolved(memory, [(1, 3 * PAGE - 1)]) == (
        [(2 * MIB + PAGE, 2 * MIB + 2 * PAGE)],
        {Refusal.UNALIGNED: 2 * PAGE - 2},
    )
    assert resolved(memory, [(5, 6)]) == ([], {Refusal.UNALIGNED: 1})


def test_pages_that_hold_a_ring_are_kept(memory: GuestMemory) -> None:
    named = RangeVector.of([(0, 8 * PAGE)])
    parts, refused, inside = resolve(memory, named, [(2 * PAGE, 3 * PAGE)], POLICY)
    gone = [(offset - 2 * MIB, length) for _, offset, length in pieces(parts)]
    assert gone == [(0, 2 * PAGE), (3 * PAGE, 5 * PAGE)]
    assert refused == {Refusal.RING: PAGE}
    assert inside == 8 * PAGE


@pytest.mark.parametrize(
    ("magic", "policy", "reason"),
    [
        (TMPFS_MAGIC, DiscardPolicy(), None),
        (HUGETLBFS_MAGIC, DiscardPolicy(), Refusal.HUGETLB),
        (HUGETLBFS_MAGIC, DiscardPolicy(other_filesystems=True), Refusal.HUGETLB),
        (HUGETLBFS_MAGIC, DiscardPolicy(hugetlb=True), None),
        (0xEF53, DiscardPolicy(hugetlb=True), Refusal.FILESYSTEM),
        (0xEF53, DiscardPolicy(other_filesystems=True), None),
    ],
)
def test_the_file_system_decides(
    memory: GuestMemory, magic: int, policy: DiscardPolicy, reason: str | None
) -> None:
    low = mapped_regions(memory)[0]
    low.filesystem = Filesystem(magic, PAGE)
    parts, refused, inside = resolve(memory, RangeVector.of([(0, 2 * PAGE)]), [], policy)
    assert len(parts) == (reason is None)
    assert inside == 2 * PAGE
    assert refused == ({} if reason is None else {reason: 2 * PAGE})


SPANS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 12), st.integers(-1, 1), st.integers(-1, 1)),
    max_size=6,
)
UNIT = 2048
"""Half a page, the unit of the model below."""


def spans(items: list[tuple[int, int, int, int]]) -> list[Range]:
    found = ((s * UNIT + a, (s + n) * UNIT + b) for s, n, a, b in items)
    return merge((max(start, 0), end) for start, end in found)


@settings(max_examples=150, deadline=None)
@given(named=SPANS, rings=SPANS, data=st.data())
def test_resolve_against_a_model_of_single_bytes(
    named: list[tuple[int, int, int, int]],
    rings: list[tuple[int, int, int, int]],
    data: st.DataObject,
) -> None:
    """Regions of whole and half pages in a file. Every byte of guest memory is checked."""
    memory, place, file_size = GuestMemory(), 0, 64 * UNIT
    owner: dict[int, int] = {}  # half page of guest memory -> half page of the file
    for _ in range(data.draw(st.integers(1, 3))):
        place += data.draw(st.integers(0, 6))
        size = data.draw(st.integers(1, 12))
        offset = data.draw(st.integers(0, file_size // UNIT - size))
        region = Region(place * UNIT, size * UNIT, USER + place * UNIT, offset * UNIT)
        memory.add(MappedRegion(region, memfd(file_size)))
        owner |= {place + i: offset + i for i in range(size)}
        place += size
    ranges, protected = spans(named), spans(rings)
    vector = RangeVector.of(ranges)
    if data.draw(st.booleans()):  # of PFNs, as in most requests
        ranges = merge([(start & -PAGE, end + PAGE - 1 & -PAGE) for start, end in ranges])
        vector = page_vector([at // PAGE for r in ranges for at in range(*r, PAGE)])
    parts, refused, inside = resolve(memory, vector, protected, POLICY)

    def is_in(address: int, items: list[Range]) -> bool:
        return any(start <= address < end for start, end in items)

    named_bytes = sum(end - start for start, end in ranges)
    assert sum(part.size for part in parts) + sum(refused.values()) == named_bytes
    assert all(list(part.ranges) == merge(part.ranges) for part in parts)
    assert all(part.size == total(part.ranges) for part in parts)
    assert inside == memory.inside(vector)
    assert inside == sum(a // UNIT in owner for start, end in ranges for a in range(start, end))
    freed = set()
    for owner_region, offset, length in pieces(parts):
        assert offset % PAGE == length % PAGE == 0
        assert length > 0
        first = offset + owner_region.guest_start - owner_region.region.mmap_offset
        assert owner_region.guest_start <= first
        assert first + length <= owner_region.guest_end
        freed |= set(range(first, first + length))
    assert all(is_in(address, ranges) for address in freed)
    assert not any(is_in(address, protected) for address in freed)
    for mapped_region in mapped_regions(memory):  # every whole page that may be discarded is
        to_file = mapped_region.region.mmap_offset - mapped_region.guest_start
        start = -(-(mapped_region.guest_start + to_file) // PAGE) * PAGE - to_file
        for page in range(start, mapped_region.guest_end - PAGE + 1, PAGE):
            whole = range(page, page + PAGE)
            must_go = all(is_in(a, ranges) and not is_in(a, protected) for a in whole)
            assert (page in freed) is must_go
    memory.close()


def test_only_whole_huge_pages_may_be_discarded(huge_pages: HugePages) -> None:
    memory = GuestMemory()
    memory.add(mapped(memfd(4 * HUGE, flags=os.MFD_HUGETLB), guest=HUGE, size=3 * HUGE + PAGE))
    ranges = [(HUGE + PAGE, 5 * HUGE)]
    parts, refused, _ = resolve(memory, RangeVector.of(ranges), [], DiscardPolicy(hugetlb=True))
    assert [(offset, length) for _, offset, length in pieces(parts)] == [(HUGE, 2 * HUGE)]
    assert refused == {Refusal.OUTSIDE: HUGE - PAGE, Refusal.PARTIAL_HUGE_PAGE: HUGE}
    memory.close()


def test_a_region_that_is_untouched_is_refused_by_a_rule(memory: GuestMemory) -> None:
    memory.add(UntouchedRegion(Region(GIB, MIB, USER + GIB, 0), "why"))
    found = resolve(memory, RangeVector.of([(0, PAGE), (GIB, GIB + 2 * PAGE)]), [], DiscardPolicy())
    assert [list(part.ranges) for part in found.parts] == [[(0, PAGE)]]
    assert found.refused == {Refusal.UNTOUCHED: 2 * PAGE}
    assert found.inside == 3 * PAGE

"""Guest memory over real files: what is mapped, read, borrowed, and what may be discarded."""

from __future__ import annotations

import mmap
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.vhost_user_payloads import Region
from tests.helpers import GIB, HUGE, MIB, PAGE, huge_pages, memfd, resident
from vhost_balloon.errors import FrontEndError, RingError, RingErrorReason
from vhost_balloon.fds import OwnedFd
from vhost_balloon.guest_memory import DiscardPolicy, GuestMemory, MappedRegion, check_disjoint
from vhost_balloon.ranges import Range, merge
from vhost_balloon.refusal import Refusal
from vhost_balloon.syscalls import HUGETLBFS_MAGIC, TMPFS_MAGIC, Filesystem

TOP = 1 << 64
USER = 0x7F00_0000_0000
POLICY = DiscardPolicy()


def mapped(
    fd: OwnedFd, guest: int = 0, size: int = MIB, offset: int = 0, user: int | None = None
) -> MappedRegion:
    where = USER + guest if user is None else user
    return MappedRegion(Region(guest, size, where, offset), fd)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    """1 MiB at 0 and 1 MiB at 4 GiB, from one file in the opposite order; a hole between."""
    low = memfd(3 * MIB)
    high = OwnedFd(os.dup(low.fileno()))
    memory = GuestMemory()
    memory.add(mapped(high, guest=4 * GIB, offset=0))
    memory.add(mapped(low, guest=0, offset=2 * MIB))
    yield memory
    memory.close()


# Mapping


def test_a_region_says_what_it_is(memory: GuestMemory) -> None:
    low, high = memory.regions
    assert (low.guest_start, low.guest_end) == (0, MIB)
    assert (high.guest_start, high.guest_end) == (4 * GIB, 4 * GIB + MIB)
    assert memory.size == 2 * MIB
    assert low.statistics().backing == "tmpfs"
    assert (low.page_size, low.shrink_sealed) == (PAGE, True)


@pytest.mark.parametrize(
    "region",
    [
        Region(0, 0, USER, 0),
        Region(TOP - PAGE, 2 * PAGE, USER, 0),
        Region(0, 2 * PAGE, TOP - PAGE, 0),
        Region(0, 2 * PAGE, USER, TOP - PAGE),
        Region(TOP - 1, TOP - 1, TOP - 1, TOP - 1),
        Region(0, 2 * MIB, USER, 0),  # larger than its file
        Region(0, MIB, USER, 1),
        Region(0, PAGE, USER, MIB),
    ],
)
def test_a_region_that_no_memory_can_have_is_refused_and_its_descriptor_left(
    region: Region,
) -> None:
    fd = memfd(MIB)
    with pytest.raises(FrontEndError):
        MappedRegion(region, fd)
    os.fstat(fd.fileno())
    fd.close()


def test_the_last_page_below_2_to_the_64_can_be_memory() -> None:
    region = MappedRegion(Region(TOP - PAGE, PAGE, TOP - PAGE, 0), memfd(PAGE))
    memory = GuestMemory()
    memory.add(region)
    assert memory.read(TOP - PAGE, PAGE) == bytes(PAGE)
    with pytest.raises(RingError):
        memory.read(TOP - 1, 2)
    memory.close()


def wrong_kinds() -> Iterator[tuple[str, OwnedFd]]:
    left, right = socket.socketpair()
    right.close()
    yield "socket", OwnedFd(left.detach())
    yield "eventfd", OwnedFd(os.eventfd(0))
    yield "directory", OwnedFd(os.open("/", os.O_RDONLY))
    yield "device", OwnedFd(os.open("/dev/zero", os.O_RDWR))
    reader, writer = os.pipe()
    os.close(writer)
    yield "pipe", OwnedFd(reader)


def test_descriptors_that_are_no_memory_are_refused() -> None:
    for kind, fd in wrong_kinds():
        with pytest.raises(FrontEndError, match="not a file"):
            mapped(fd)
        assert os.fstat(fd.fileno()), kind
        fd.close()


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_PATH])
def test_a_file_that_cannot_be_written_is_refused(flags: int, tmp_path: Path) -> None:
    (tmp_path / "ram").write_bytes(bytes(MIB))
    fd = OwnedFd(os.open(tmp_path / "ram", flags))
    with pytest.raises(FrontEndError, match="cannot be mapped"):
        mapped(fd)
    fd.close()


@pytest.mark.parametrize(("seals", "sealed"), [(0, False), (0x2, True), (0x4, False), (0x6, True)])
def test_it_is_known_whether_memory_can_shrink(seals: int, sealed: bool) -> None:
    region = mapped(memfd(MIB, seals=seals))
    assert region.shrink_sealed is sealed
    region.close()


def test_a_file_that_cannot_be_sealed_counts_as_unsealed(tmp_path: Path) -> None:
    (tmp_path / "ram").write_bytes(bytes(MIB))
    region = mapped(OwnedFd(os.open(tmp_path / "ram", os.O_RDWR)))
    assert not region.shrink_sealed
    region.close()


@pytest.mark.parametrize(
    ("guest", "user", "overlap"),
    [
        (MIB, USER + MIB, None),
        (MIB - 1, USER + MIB, "guest_address"),
        (MIB, USER + MIB - 1, "user_address"),
        (0, 0, "guest_address"),
    ],
)
def test_regions_share_no_addresses(guest: int, user: int, overlap: str | None) -> None:
    old, new = Region(0, MIB, USER, 0), Region(guest, MIB, user, 0)
    for first, second in ((old, new), (new, old)):
        if overlap is None:
            check_disjoint([first], second)
        else:
            with pytest.raises(FrontEndError, match=overlap):
                check_disjoint([first], second)


def status(field: str) -> int:
    """A figure of /proc/self/status in bytes."""
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert match is not None
    return int(match[1]) * 1024


def test_mapping_4_tib_costs_no_memory() -> None:
    fds = [memfd(GIB << 10) for _ in range(4)]
    before = {field: status(field) for field in ("VmRSS", "VmPTE")}
    memory = GuestMemory()
    for position, fd in enumerate(fds):
        memory.add(mapped(fd, guest=position << 40, size=1 << 40))
    assert memory.size == 4 << 40
    assert memory.read((3 << 40) + 5, 4) == bytes(4)
    after = {field: status(field) for field in before}
    assert memory.resident() == 0
    memory.close()
    assert all(after[field] - before[field] < MIB for field in before), (before, after)


def test_closed_memory_leaves_neither_mapping_nor_descriptor() -> None:
    def mine() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:guest")

    count, descriptors = mine(), len(os.listdir("/proc/self/fd"))
    memory = GuestMemory()
    memory.add(mapped(memfd(MIB)))
    assert mine() == count + 1
    memory.close()
    assert (mine(), len(os.listdir("/proc/self/fd"))) == (count, descriptors)


# Reading and borrowing


def test_reads_go_across_adjacent_regions_and_not_into_holes() -> None:
    memory = GuestMemory()
    for position, letter in enumerate(b"ab"):
        fd = memfd(MIB)
        os.pwrite(fd.fileno(), bytes([letter]) * MIB, 0)
        memory.add(mapped(fd, guest=GIB + position * MIB))
    assert memory.read(GIB + MIB - 2, 4) == b"aabb"
    assert memory.read(GIB, 2 * MIB) == b"a" * MIB + b"b" * MIB
    assert memory.read(GIB + 2 * MIB, 0) == b""
    for address, length in ((GIB - 1, 2), (GIB + 2 * MIB - 1, 2), (0, 1), (TOP - 1, 1)):
        with pytest.raises(RingError) as caught:
            memory.read(address, length)
        assert caught.value.reason is RingErrorReason.BUFFER
    memory.close()


def test_reads_use_the_regions_place_in_its_file_and_fill_no_hole(memory: GuestMemory) -> None:
    fd = memory.regions[0].fd
    os.pwrite(fd.fileno(), b"low", 2 * MIB + 7)
    os.pwrite(fd.fileno(), b"high", 7)
    filled = resident(fd)
    assert memory.read(7, 3) == b"low"
    assert memory.read(4 * GIB + 7, 4) == b"high"
    assert memory.read(MIB - PAGE, PAGE) == bytes(PAGE)
    assert resident(fd) == memory.resident() == filled == 2 * PAGE


def test_memory_whose_file_was_truncated_breaks_the_ring_and_not_the_process() -> None:
    fd = memfd(MIB, seals=0)
    memory = GuestMemory()
    memory.add(mapped(fd))
    os.ftruncate(fd.fileno(), 0)
    with pytest.raises(RingError) as caught:
        memory.read(0, 16)
    assert caught.value.reason is RingErrorReason.MEMORY
    memory.close()


def test_a_view_is_the_files_own_memory_and_is_allocated(memory: GuestMemory) -> None:
    low = memory.regions[0]
    view = low.view(5 * PAGE + 16, 3 * PAGE)
    assert resident(low.fd) == 4 * PAGE
    view[0:3] = b"abc"
    assert os.pread(low.fd.fileno(), 3, 2 * MIB + 5 * PAGE + 16) == b"abc"
    assert len(view) == 3 * PAGE
    with pytest.raises(BufferError):
        low.unmap()
    view.release()


@pytest.mark.parametrize("offset", [PAGE + 1, PAGE - 1, 5])
def test_a_region_may_begin_anywhere_in_its_file(offset: int) -> None:
    fd = memfd(MIB)
    region = mapped(fd, size=3 * PAGE, offset=offset)
    with region.view(1, 4) as view:
        view[:] = b"abcd"
    assert os.pread(fd.fileno(), 4, offset + 1) == b"abcd"
    region.close()


@pytest.mark.parametrize(
    ("address", "length", "offset"),
    [
        (USER, MIB, 0),
        (USER + MIB - 1, 1, MIB - 1),
        (USER + MIB - 1, 2, None),
        (USER - 1, 1, None),
        (USER + 4 * GIB + 5, 6, 5),
        (0, 1, None),
        (TOP - 1, 2, None),
    ],
)
def test_user_addresses_are_found_where_the_whole_range_is_in_one_region(
    memory: GuestMemory, address: int, length: int, offset: int | None
) -> None:
    if offset is None:
        with pytest.raises(FrontEndError, match="outside memory"):
            memory.find_user(address, length)
    else:
        assert memory.find_user(address, length)[1] == offset


# What may be discarded


def discarded(memory: GuestMemory, ranges: list[Range]) -> tuple[list[Range], dict[str, int]]:
    pieces, refused = memory.resolve(ranges, [], POLICY)
    return [(p.offset, p.offset + p.length) for p in pieces], dict(refused)


def test_ranges_become_file_ranges_and_what_lies_outside_is_said(memory: GuestMemory) -> None:
    pieces, refused = discarded(memory, [(0, 8 * PAGE), (4 * GIB - PAGE, 4 * GIB + PAGE)])
    assert pieces == [(2 * MIB, 2 * MIB + 8 * PAGE), (0, PAGE)]
    assert refused == {Refusal.OUTSIDE: PAGE}


def test_a_range_over_everything_is_cut_to_the_regions(memory: GuestMemory) -> None:
    pieces, refused = discarded(memory, [(0, TOP + PAGE)])
    assert pieces == [(2 * MIB, 3 * MIB), (0, MIB)]
    assert refused == {Refusal.OUTSIDE: TOP + PAGE - 2 * MIB}


def test_partial_pages_are_kept(memory: GuestMemory) -> None:
    assert discarded(memory, [(1, 3 * PAGE - 1)]) == (
        [(2 * MIB + PAGE, 2 * MIB + 2 * PAGE)],
        {Refusal.UNALIGNED: 2 * PAGE - 2},
    )
    assert discarded(memory, [(5, 6)]) == ([], {Refusal.UNALIGNED: 1})


def test_pages_that_hold_a_ring_are_kept(memory: GuestMemory) -> None:
    pieces, refused = memory.resolve([(0, 8 * PAGE)], [(2 * PAGE, 3 * PAGE)], POLICY)
    assert [(p.offset - 2 * MIB, p.length) for p in pieces] == [(0, 2 * PAGE), (3 * PAGE, 5 * PAGE)]
    assert refused == [(Refusal.RING, PAGE)]


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
def test_what_a_file_lives_on_decides(
    memory: GuestMemory, magic: int, policy: DiscardPolicy, reason: str | None
) -> None:
    low = memory.regions[0]
    low.filesystem = Filesystem(magic, PAGE)
    pieces, refused = memory.resolve([(0, 2 * PAGE)], [], policy)
    assert len(pieces) == (reason is None)
    assert refused == ([] if reason is None else [(reason, 2 * PAGE)])


SPANS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 12), st.integers(-1, 1), st.integers(-1, 1)),
    max_size=6,
)
UNIT = 2048
"""Half a page: what the model below counts in."""


def spans(items: list[tuple[int, int, int, int]]) -> list[Range]:
    found = ((s * UNIT + a, (s + n) * UNIT + b) for s, n, a, b in items)
    return merge((max(start, 0), end) for start, end in found)


@settings(max_examples=150)
@given(named=SPANS, rings=SPANS, data=st.data())
def test_resolve_against_a_model_of_single_bytes(
    named: list[tuple[int, int, int, int]],
    rings: list[tuple[int, int, int, int]],
    data: st.DataObject,
) -> None:
    """Regions of whole or half pages in a file; every byte of guest memory is looked at."""
    memory, place, file_size = GuestMemory(), 0, 64 * UNIT
    owner: dict[int, int] = {}  # page of guest memory in half pages -> half page in the file
    for _ in range(data.draw(st.integers(1, 3))):
        place += data.draw(st.integers(0, 6))
        size = data.draw(st.integers(1, 12))
        offset = data.draw(st.integers(0, file_size // UNIT - size))
        region = Region(place * UNIT, size * UNIT, USER + place * UNIT, offset * UNIT)
        memory.add(MappedRegion(region, memfd(file_size)))
        owner |= {place + i: offset + i for i in range(size)}
        place += size
    ranges, protected = spans(named), spans(rings)
    pieces, refused = memory.resolve(ranges, protected, POLICY)

    def is_in(address: int, items: list[Range]) -> bool:
        return any(start <= address < end for start, end in items)

    named_bytes = sum(end - start for start, end in ranges)
    assert sum(p.length for p in pieces) + sum(size for _, size in refused) == named_bytes
    assert memory.inside(ranges) == sum(
        a // UNIT in owner for start, end in ranges for a in range(start, end)
    )
    freed = set()
    for piece in pieces:
        assert piece.offset % PAGE == piece.length % PAGE == 0
        assert piece.length > 0
        to_guest = piece.region.guest_start - piece.region.region.mmap_offset
        first = piece.offset + to_guest
        assert piece.region.guest_start <= first
        assert first + piece.length <= piece.region.guest_end
        freed |= set(range(first, first + piece.length))
    assert all(is_in(address, ranges) for address in freed)
    assert not any(is_in(address, protected) for address in freed)
    for mapped_region in memory.regions:  # and every whole page that may go does go
        to_file = mapped_region.region.mmap_offset - mapped_region.guest_start
        start = -(-(mapped_region.guest_start + to_file) // PAGE) * PAGE - to_file
        for page in range(start, mapped_region.guest_end - PAGE + 1, PAGE):
            whole = range(page, page + PAGE)
            wanted = all(is_in(a, ranges) and not is_in(a, protected) for a in whole)
            assert (page in freed) is wanted
    memory.close()


# Huge pages


@pytest.mark.parametrize("reserved", [True, False])
def test_mapping_huge_pages_reserves_none(reserved: bool) -> None:
    """A plain mapping of the same file takes its holes out of the pool, or fails."""
    with huge_pages(4) as pool:
        fd = memfd(4 * HUGE, flags=os.MFD_HUGETLB)
        if not reserved:
            holder = mmap.mmap(-1, 4 * HUGE, flags=mmap.MAP_SHARED | 0x40000)  # MAP_HUGETLB
        region = mapped(fd, size=4 * HUGE)
        memory = GuestMemory([region], [0])
        assert (region.page_size, region.statistics().backing) == (HUGE, "hugetlb")
        assert pool.reserved == (0 if reserved else 4)
        assert memory.read(HUGE - 2, 4) == bytes(4)
        assert resident(fd) == 0
        if reserved:
            with region.view(HUGE + 5, 16) as view:
                view[:] = bytes(range(16))
            assert resident(fd) == HUGE
            assert memory.read(HUGE + 5, 16) == bytes(range(16))
        else:
            with pytest.raises(FrontEndError, match="cannot be allocated"):
                region.view(0, 16)
            holder.close()
        memory.close()
        assert pool.free == 4


def test_only_whole_huge_pages_may_be_discarded() -> None:
    with huge_pages(4):
        fd = memfd(4 * HUGE, flags=os.MFD_HUGETLB)
        memory = GuestMemory()
        memory.add(mapped(fd, guest=HUGE, size=4 * HUGE - PAGE))
        pieces, refused = memory.resolve(
            [(HUGE + PAGE, 5 * HUGE)], [], DiscardPolicy(hugetlb=True)
        )
        assert [(p.offset, p.length) for p in pieces] == [(HUGE, 2 * HUGE)]
        kept = (HUGE - PAGE) + (HUGE - PAGE)
        assert sorted(refused) == [(Refusal.OUTSIDE, PAGE), (Refusal.PARTIAL_HUGE_PAGE, kept)]
        memory.close()


def test_a_file_on_tmpfs_is_told_by_its_file_system() -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(MIB)
        region = mapped(OwnedFd(os.dup(file.fileno())))
        assert region.statistics().backing == "tmpfs"
        region.close()

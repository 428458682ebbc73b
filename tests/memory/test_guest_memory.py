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

from protocol.vhost_user_payloads import Region
from tests.support.helpers import GIB, HUGE, MIB, PAGE, USER, mapped, memfd, resident
from tests.support.huge_pages import HugePages
from vhost_balloon.errors import FrontEndError, RingError, RingErrorReason
from vhost_balloon.fds import OwnedFd
from vhost_balloon.figures.discard_policy import DiscardPolicy
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.memory.region import MappedRegion, check_disjoint

TOP = 1 << 64
POLICY = DiscardPolicy()


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


def mine() -> int:
    """Mappings that this process has of guest memory."""
    return Path("/proc/self/maps").read_text().count("memfd:guest")


def test_a_removed_region_is_memory_no_more(memory: GuestMemory) -> None:
    low, high = memory.regions
    memory.remove(low)
    assert (memory.regions, memory.size) == ([high], MIB)
    assert memory.read(4 * GIB, 1) == b"\0"
    with pytest.raises(RingError):
        memory.read(0, 1)
    low.close()


def test_closed_memory_leaves_neither_mapping_nor_descriptor() -> None:
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


# Huge pages


def reserved_huge_pages() -> int:
    return int(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages").read_text())


def test_mapping_huge_pages_reserves_none(huge_pages: HugePages) -> None:
    fd = memfd(4 * HUGE, flags=os.MFD_HUGETLB)
    free, taken = huge_pages.free(), reserved_huge_pages()
    memory = GuestMemory()
    memory.add(mapped(fd, size=4 * HUGE))
    assert (memory.regions[0].page_size, memory.regions[0].filesystem.kind) == (HUGE, "hugetlb")
    assert (huge_pages.free(), reserved_huge_pages()) == (free, taken)
    with mmap.mmap(fd.fileno(), 4 * HUGE):  # what a plain mapping does instead
        assert reserved_huge_pages() == taken + 4
    assert memory.read(HUGE - 2, 4) == bytes(4)
    assert resident(fd) == 0
    with memory.regions[0].view(HUGE + 5, 16) as view:
        view[:] = bytes(range(16))
    assert (resident(fd), huge_pages.free()) == (HUGE, free - 1)
    assert memory.read(HUGE + 5, 16) == bytes(range(16))
    memory.close()
    assert huge_pages.free() == free


def test_a_region_that_ends_inside_a_huge_page_is_unmapped_whole(huge_pages: HugePages) -> None:
    count = mine()
    region = mapped(memfd(4 * HUGE, flags=os.MFD_HUGETLB), size=HUGE + PAGE, offset=HUGE - PAGE)
    assert mine() == count + 1
    region.close()
    assert mine() == count


def test_an_exhausted_pool_is_an_error_where_a_ring_needs_a_page(huge_pages: HugePages) -> None:
    fd = memfd(4 * HUGE, flags=os.MFD_HUGETLB)
    os.posix_fallocate(fd.fileno(), 0, HUGE)
    huge_pages.exhaust()
    with pytest.raises(OSError, match="Cannot allocate"):
        mmap.mmap(fd.fileno(), 4 * HUGE)
    region = mapped(fd, size=4 * HUGE)
    with pytest.raises(FrontEndError, match="cannot be allocated"):
        region.view(HUGE - 8, 16)
    with region.view(HUGE - 16, 16) as view:
        view[:] = bytes(range(16))
    region.close()


def test_a_file_on_tmpfs_is_told_by_its_file_system() -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(MIB)
        region = mapped(OwnedFd(os.dup(file.fileno())))
        assert region.statistics().backing == "tmpfs"
        region.close()

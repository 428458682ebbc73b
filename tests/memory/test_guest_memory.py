"""Guest memory over real files: adding, removing and closing regions, reading, finding."""

from __future__ import annotations

import mmap
import os
import re
from pathlib import Path

import pytest

from protocol.vhost_user_payloads import Region
from tests.support.helpers import (
    GIB,
    HUGE,
    MIB,
    PAGE,
    USER,
    mapped,
    mapped_regions,
    memfd,
    resident,
)
from tests.support.huge_pages import HugePages
from vhost_balloon.errors import FrontEndError, RingError, RingErrorReason
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.memory.region import MappedRegion, UntouchedRegion
from vhost_balloon.memory.vector import RangeVector

TOP = 1 << 64


def test_the_last_page_below_2_to_the_64_can_be_memory() -> None:
    region = MappedRegion(Region(TOP - PAGE, PAGE, TOP - PAGE, 0), memfd(PAGE))
    memory = GuestMemory()
    memory.add(region)
    assert memory.read(TOP - PAGE, PAGE) == bytes(PAGE)
    with pytest.raises(RingError):
        memory.read(TOP - 1, 2)
    memory.close()


def status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    match = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert match is not None
    return int(match[1]) * 1024


def test_mapping_4_tib_costs_no_memory() -> None:
    fds = [memfd(GIB << 10) for _ in range(4)]
    before = {field: status(field) for field in ("VmRSS", "VmPTE")}
    memory = GuestMemory()
    for position, fd in enumerate(fds):
        memory.add(mapped(fd, guest=position << 40, size=1 << 40))
    assert memory.read((3 << 40) + 5, 4) == bytes(4)
    after = {field: status(field) for field in before}
    assert memory.resident() == 0
    memory.close()
    assert all(after[field] - before[field] < MIB for field in before), (before, after)


def mine() -> int:
    """How many mappings this process has of guest memory."""
    return Path("/proc/self/maps").read_text().count("memfd:guest")


def test_a_removed_region_is_no_longer_memory(memory: GuestMemory) -> None:
    low, high = memory.regions
    memory.remove(low)
    assert memory.regions == [high]
    assert memory.read(4 * GIB, 1) == b"\0"
    with pytest.raises(RingError):
        memory.read(0, 1)
    low.close()


def test_closing_memory_leaves_no_mapping_and_no_descriptor() -> None:
    count, descriptors = mine(), len(os.listdir("/proc/self/fd"))
    memory = GuestMemory()
    memory.add(mapped(memfd(MIB)))
    assert mine() == count + 1
    memory.close()
    assert (mine(), len(os.listdir("/proc/self/fd"))) == (count, descriptors)


# Reading and finding


def test_reads_cross_adjacent_regions_but_not_holes() -> None:
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


def test_reads_use_the_regions_offset_in_its_file_and_fill_no_holes(memory: GuestMemory) -> None:
    fd = mapped_regions(memory)[0].fd
    os.pwrite(fd.fileno(), b"low", 2 * MIB + 7)
    os.pwrite(fd.fileno(), b"high", 7)
    filled = resident(fd)
    assert memory.read(7, 3) == b"low"
    assert memory.read(4 * GIB + 7, 4) == b"high"
    assert memory.read(MIB - PAGE, PAGE) == bytes(PAGE)
    assert resident(fd) == memory.resident() == filled == 2 * PAGE


def test_a_truncated_file_breaks_the_ring_but_not_the_process() -> None:
    fd = memfd(MIB, seals=0)
    memory = GuestMemory()
    memory.add(mapped(fd))
    os.ftruncate(fd.fileno(), 0)
    with pytest.raises(RingError) as caught:
        memory.read(0, 16)
    assert caught.value.reason is RingErrorReason.MEMORY
    memory.close()


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
def test_user_addresses_are_found_if_the_whole_range_is_in_one_region(
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
    (region,) = mapped_regions(memory)
    assert (region.page_size, region.filesystem.kind) == (HUGE, "hugetlb")
    assert (huge_pages.free(), reserved_huge_pages()) == (free, taken)
    with mmap.mmap(fd.fileno(), 4 * HUGE):  # a plain mapping reserves them
        assert reserved_huge_pages() == taken + 4
    assert memory.read(HUGE - 2, 4) == bytes(4)
    assert resident(fd) == 0
    with region.view(HUGE + 5, 16) as view:
        view[:] = bytes(range(16))
    assert (resident(fd), huge_pages.free()) == (HUGE, free - 1)
    assert memory.read(HUGE + 5, 16) == bytes(range(16))
    memory.close()
    assert huge_pages.free() == free


def test_a_region_that_ends_inside_a_huge_page_is_unmapped_entirely(huge_pages: HugePages) -> None:
    count = mine()
    region = mapped(memfd(4 * HUGE, flags=os.MFD_HUGETLB), size=HUGE + PAGE, offset=HUGE - PAGE)
    assert mine() == count + 1
    region.close()
    assert mine() == count


def test_a_region_that_is_untouched_is_memory_and_nothing_in_it_is_read(
    memory: GuestMemory,
) -> None:
    memory.add(UntouchedRegion(Region(GIB, MIB, USER + GIB, 0), "why"))
    ranges = [(0, PAGE), (GIB, GIB + PAGE), (2 * GIB, 3 * GIB)]
    assert memory.inside(RangeVector.of(ranges)) == 2 * PAGE
    assert list(memory.gridded(RangeVector.of(ranges[1:2]))) == []
    with pytest.raises(RingError, match="untouched"):
        memory.read(GIB, 4)
    with pytest.raises(FrontEndError, match="untouched"):
        memory.find_user(USER + GIB, 4)
    assert memory.read(0, 1) == b"\0"
    assert len(memory.statistics()) == 3
    assert memory.resident() == 0

"""One region over real files: which regions and files are refused, views, and huge pages."""

from __future__ import annotations

import mmap
import os
import socket
import tempfile
from collections.abc import Iterator
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
from vhost_balloon.errors import FrontEndError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.figures.statistics import RegionStatistics
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.memory.region import (
    MappedRegion,
    UntouchedRegion,
    UnusableError,
    accept,
    check_disjoint,
)

TOP = 1 << 64


def test_a_region_has_addresses_a_page_size_and_a_backing(memory: GuestMemory) -> None:
    low, high = mapped_regions(memory)
    assert (low.guest_start, low.guest_end) == (0, MIB)
    assert (high.guest_start, high.guest_end) == (4 * GIB, 4 * GIB + MIB)
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
def test_an_impossible_region_is_refused_and_its_descriptor_left_open(region: Region) -> None:
    fd = memfd(MIB)
    with pytest.raises(FrontEndError):
        MappedRegion(region, fd)
    os.fstat(fd.fileno())
    fd.close()


def wrong_kinds() -> Iterator[tuple[str, OwnedFd]]:
    left, right = socket.socketpair()
    right.close()
    yield "socket", OwnedFd(left.detach())
    yield "eventfd", OwnedFd(os.eventfd(0))
    yield "directory", OwnedFd(os.open("/", os.O_RDONLY))
    reader, writer = os.pipe()
    os.close(writer)
    yield "pipe", OwnedFd(reader)


def test_descriptors_of_other_kinds_than_files_are_refused() -> None:
    for kind, fd in wrong_kinds():
        for guest in (0, GIB):
            with pytest.raises(FrontEndError, match="not a file"):
                accept(Region(guest, MIB, USER, 0), fd)
        assert os.fstat(fd.fileno()), kind
        fd.close()


@pytest.mark.parametrize(
    ("path", "flags", "why"),
    [
        ("ram", os.O_RDONLY, "cannot be mapped"),
        ("ram", os.O_PATH, "cannot be mapped"),
        ("short", os.O_RDWR, "of a file of"),
        ("/dev/zero", os.O_RDWR, "of a device"),
    ],
)
def test_a_file_that_cannot_be_used_costs_its_region_only(
    path: str, flags: int, why: str, tmp_path: Path
) -> None:
    """Except at address 0: that is the guest's RAM."""
    (tmp_path / "ram").write_bytes(bytes(MIB))
    (tmp_path / "short").write_bytes(bytes(MIB - 1))
    fd = OwnedFd(os.open(tmp_path / path, flags))
    with pytest.raises(UnusableError, match=why):
        accept(Region(0, MIB, USER, 0), fd)
    assert os.fstat(fd.fileno()), "still the caller's"
    region = accept(Region(GIB, MIB, USER, 0), fd)
    assert fd.closed
    assert isinstance(region, UntouchedRegion)
    assert why in region.why
    assert region.statistics() == (RegionStatistics(GIB, MIB, 0, "untouched"))


@pytest.mark.parametrize(("seals", "sealed"), [(0, False), (0x2, True), (0x4, False), (0x6, True)])
def test_seals_tell_whether_memory_can_shrink(seals: int, sealed: bool) -> None:
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
def test_regions_must_not_share_addresses(guest: int, user: int, overlap: str | None) -> None:
    old, new = Region(0, MIB, USER, 0), Region(guest, MIB, user, 0)
    for first, second in ((old, new), (new, old)):
        if overlap is None:
            check_disjoint([first], second)
        else:
            with pytest.raises(FrontEndError, match=overlap):
                check_disjoint([first], second)


def test_a_view_is_the_files_memory_and_is_allocated(memory: GuestMemory) -> None:
    low = mapped_regions(memory)[0]
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


def test_a_view_of_a_huge_page_fails_if_the_pool_is_exhausted(huge_pages: HugePages) -> None:
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


def test_a_file_on_tmpfs_is_recognised() -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        file.truncate(MIB)
        region = mapped(OwnedFd(os.dup(file.fileno())))
        assert region.statistics().backing == "tmpfs"
        region.close()

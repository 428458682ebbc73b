"""The simulated guest's RAM."""

from __future__ import annotations

import fcntl
import os
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.support.huge_pages import HugePages, alone_with
from vhost_balloon.simulator.memory import GuestRam, create_memfd

MIB = 1 << 20
PAGE = 4096
QEMU_SEALS = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW


def test_a_memfd_has_qemus_seals_unless_switched_off() -> None:
    for sealed, seals in ((True, QEMU_SEALS), (False, 0)):
        with GuestRam.create(MIB, sealed=sealed) as ram:
            assert fcntl.fcntl(ram.regions[0].fd, fcntl.F_GET_SEALS) == seals


def test_only_written_pages_become_resident() -> None:
    with GuestRam.create(64 * MIB) as ram:
        assert ram.resident() == 0
        ram.write(8 * MIB, b"x" * (PAGE + 1))
        assert ram.resident() == 2 * PAGE
        assert ram.is_resident(8 * MIB, 2 * PAGE)
        assert not ram.is_resident(8 * MIB, 3 * PAGE)
        assert ram.resident_in(0, 64 * MIB) == 2 * PAGE


def test_reading_a_hole_gives_zeros_and_fills_nothing() -> None:
    with GuestRam.create(4 * MIB) as ram:
        assert ram.read(MIB, PAGE) == bytes(PAGE)
        assert ram.resident() == 0


def test_regions_around_the_pci_hole_share_one_memfd_at_different_offsets() -> None:
    with GuestRam.around_pci_hole(4 << 30) as ram:
        below, above = ram.regions
        assert (below.start, below.end) == (0, 2 << 30)
        assert (above.start, above.end) == (4 << 30, 6 << 30)
        assert above.region.mmap_offset == 2 << 30
        assert os.fstat(below.fd).st_ino == os.fstat(above.fd).st_ino
        ram.write(4 << 30, b"above")
        assert ram.resident() == PAGE, "one inode is counted once"
        assert os.pread(below.fd, 5, 2 << 30) == b"above"
        with pytest.raises(ValueError, match=r"is not RAM"):
            ram.write(3 << 30, b"in the hole")


def test_a_range_may_cross_from_one_region_into_the_adjacent_one() -> None:
    with GuestRam.create(2 * MIB) as ram:
        ram.add(2 * MIB, 2 * MIB)
        ram.write(2 * MIB - 3, b"abcdef")
        assert ram.read(2 * MIB - 3, 6) == b"abcdef"
        assert ram.resident() == 2 * PAGE
        assert ram.size == 4 * MIB


def test_user_addresses_are_not_guest_addresses_and_never_overlap() -> None:
    with GuestRam.create(2 * MIB) as ram:
        ram.add(2 * MIB, 2 * MIB)
        spans = [
            (r.region.user_address, r.region.user_address + r.region.size) for r in ram.regions
        ]
        assert all(start >= ram.size for start, _ in spans)
        assert spans[0][1] <= spans[1][0] or spans[1][1] <= spans[0][0]
        assert ram.to_user(2 * MIB + 5) == ram.regions[1].region.user_address + 5


def test_ram_can_be_in_a_file_of_the_caller() -> None:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        os.ftruncate(file.fileno(), 4 * MIB)
        with GuestRam.create(4 * MIB, fd=os.dup(file.fileno())) as ram:
            ram.write(MIB, b"tmpfs")
            assert os.pread(file.fileno(), 5, MIB) == b"tmpfs"
            assert ram.resident() == PAGE


def test_huge_pages_are_reserved_or_refused_immediately() -> None:
    free = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    with alone_with(HugePages.POOL) if free.exists() else nullcontext():
        if free.exists() and int(free.read_text()):
            with GuestRam.create(2 * MIB, hugetlb=True) as ram:
                ram.write(0, b"x")
                assert ram.resident() == 2 * MIB
        else:  # the pool is empty, so the mapping, which reserves pages, fails
            with pytest.raises(OSError, match=r"memory|support|argument"):
                GuestRam.create(2 * MIB, hugetlb=True)


def test_terabytes_of_ram_cost_nothing() -> None:
    with GuestRam.create(4 << 40) as ram:
        ram.write((4 << 40) - PAGE, b"x")
        assert ram.resident() == PAGE


def test_the_driver_area_is_allocated_aligned_until_it_is_used_up() -> None:
    with GuestRam.create(MIB, driver_area=64 << 10) as ram:
        assert ram.allocate(10) == PAGE, "address 0 is never allocated"
        assert ram.allocate(PAGE, PAGE) == 2 * PAGE
        with pytest.raises(MemoryError):
            ram.allocate(64 << 10)


def test_closing_leaves_no_descriptor_and_no_mapping() -> None:
    before = len(os.listdir("/proc/self/fd"))
    ram = GuestRam.around_pci_hole(4 << 30)
    ram.is_resident(0)
    ram.close()
    ram.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert "simulated-guest-ram" not in Path("/proc/self/maps").read_text()


def test_a_failed_memfd_leaves_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=r"argument|large|implemented"):
        create_memfd(2**62 + 1, hugetlb=True)
    assert len(os.listdir("/proc/self/fd")) == before

"""Parts of the simulated guest: RAM, page allocator, eventfds, and the driver's side of a ring."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from vhost_balloon.simulator.allocator import BLOCK_SIZE, GuestOutOfMemory, PageAllocator
from vhost_balloon.simulator.events import EventFd
from vhost_balloon.simulator.memory import GuestRam, create_memfd
from vhost_balloon.simulator.ring import DriverRing, RingFull, Used

MIB = 1 << 20
PAGE = 4096
QEMU_SEALS = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW


# RAM


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


# Page allocator


def test_memory_is_taken_from_both_ends_and_given_back() -> None:
    allocator = PageAllocator([(0, 16 * MIB), (64 * MIB, 16 * MIB)])
    assert allocator.take(20 * MIB) == [(0, 16 * MIB), (64 * MIB, 4 * MIB)]
    assert allocator.take(2 * MIB, from_top=True) == [(78 * MIB, 2 * MIB)]
    with pytest.raises(GuestOutOfMemory):
        allocator.take(11 * MIB)
    assert allocator.free == 10 * MIB
    allocator.give(78 * MIB, 2 * MIB)
    assert allocator.free_extents == [(68 * MIB, 12 * MIB)]


def test_only_whole_blocks_are_reported_the_highest_first() -> None:
    allocator = PageAllocator([(MIB, 15 * MIB)])
    assert allocator.unreported_blocks() == [12 * MIB, 8 * MIB, 4 * MIB]


def test_a_reported_block_is_unreported_once_a_page_of_it_is_used() -> None:
    allocator = PageAllocator([(0, 16 * MIB)])
    for block in allocator.unreported_blocks():
        allocator.give(*allocator.take_block(block), reported=True)
    assert allocator.unreported_blocks() == []
    assert allocator.reported == 16 * MIB
    [extent] = allocator.take(PAGE)
    allocator.give(*extent)
    assert allocator.unreported_blocks() == [0]


def test_adjacent_regions_are_not_merged() -> None:
    allocator = PageAllocator([(0, 6 * MIB), (6 * MIB, 6 * MIB)])
    assert allocator.take(12 * MIB) == [(0, 6 * MIB), (6 * MIB, 6 * MIB)]
    allocator.give(6 * MIB, 6 * MIB)
    allocator.give(0, 6 * MIB)
    assert allocator.unreported_blocks() == [8 * MIB, 0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 2000), st.integers(0, 99)), max_size=40))
def test_no_page_is_lost_or_given_out_twice(steps: list[tuple[bool, int, int]]) -> None:
    allocator = PageAllocator([(0, 8 * MIB), (8 * MIB, 8 * MIB), (32 * MIB, 8 * MIB)])
    held: list[tuple[int, int]] = []
    for from_top, pages, choice in steps:
        if choice % 3 == 0 and held:
            allocator.give(*held.pop(choice % len(held)))
        elif choice % 3 == 1 and (blocks := allocator.unreported_blocks()):
            allocator.give(*allocator.take_block(blocks[choice % len(blocks)]), reported=True)
        elif allocator.free >= pages * PAGE:
            held += allocator.take(pages * PAGE, from_top=from_top)
        everything = sorted(held + allocator.free_extents)
        assert sum(length for _, length in everything) == 24 * MIB
        ends = [address + length for address, length in everything]
        assert all(end <= start for end, (start, _) in zip(ends, everything[1:], strict=False))
        reportable = len(allocator.unreported_blocks()) * BLOCK_SIZE + allocator.reported
        assert reportable <= allocator.free


# Eventfds


async def test_an_eventfd_counts_and_wakes() -> None:
    with EventFd() as event:
        event.signal()
        event.signal()
        assert await event.wait() == 2
        assert event.take() == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(event.wait)
            await trio.testing.wait_all_tasks_blocked()
            event.signal()


async def test_closing_an_eventfd_wakes_its_waiter() -> None:
    event = EventFd()
    async with trio.open_nursery() as nursery:

        async def waiter() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await event.wait()

        nursery.start_soon(waiter)
        await trio.testing.wait_all_tasks_blocked()
        event.close()
        event.close()


# Rings; the tests write the device's used elements


def finish(ring: DriverRing, head: int, length: int = 0) -> None:
    index = ring.used_index
    element = head.to_bytes(4, "little") + length.to_bytes(4, "little")
    ring.ram.write(ring.used + 4 + 8 * (index % ring.size), element)
    ring.ram.write_word(ring.used + 2, (index + 1) & 0xFFFF)
    if ring.call_event is not None:
        ring.call_event.signal()


def test_the_bytes_of_a_chain_in_the_ring() -> None:
    with GuestRam.create(MIB) as ram:
        ring = DriverRing(ram, 8)
        head = ring.add([(0x1122334455667788, 0x400, False), (0xA000, 0x10, True)])
        assert head == 0
        assert ram.read(ring.descriptors, 32) == bytes.fromhex(
            "8877665544332211 00040000 0100 0100"  # device reads 0x400 bytes, NEXT, next is 1
            "00a0000000000000 10000000 0200 0000"  # device writes 0x10 bytes, end
        )
        assert ram.read(ring.available, 6) == bytes.fromhex("0000 0100 0000")


def test_an_indirect_chain_takes_one_descriptor() -> None:
    with GuestRam.create(MIB) as ram:
        ring = DriverRing(ram, 4)
        buffers = [(0x1000 * n, 0x1000, True) for n in range(1, 7)]
        ring.add(buffers, indirect=True)
        descriptor = ram.read(ring.descriptors, 16)
        table = int.from_bytes(descriptor[:8], "little")
        assert descriptor[8:] == bytes.fromhex("60000000 0400 0000")
        assert ram.read(table, 16) == bytes.fromhex("0010000000000000 00100000 0300 0100")
        assert ram.read(table + 80, 16) == bytes.fromhex("0060000000000000 00100000 0200 0000")


def test_a_full_ring_is_an_error_and_a_finished_request_makes_room() -> None:
    with GuestRam.create(MIB) as ram:
        ring = DriverRing(ram, 4)
        heads = [ring.add([(0, 1, False), (0, 1, False)]) for _ in range(2)]
        with pytest.raises(RingFull):
            ring.add([(0, 1, False)])
        finish(ring, heads[1], 7)
        assert ring.pop_used() == [Used(heads[1], 7)]
        ring.add([(0, 1, False)])


def test_indexes_wrap_at_65536() -> None:
    with GuestRam.create(MIB) as ram:
        ring = DriverRing(ram, 8)
        ring.reset(0xFFFE)
        for _ in range(20):
            finish(ring, ring.add([(0, 1, False)]))
            assert len(ring.pop_used()) == 1
        assert ring.available_index == ring.used_index == (0xFFFE + 20) % 65536


async def test_submit_waits_for_its_own_request_and_keeps_the_others() -> None:
    with GuestRam.create(MIB) as ram, EventFd() as call:
        ring = DriverRing(ram, 8)
        ring.call_event = call
        other = ring.add([(0, 1, False)])
        finished: list[Used] = []

        async def submit() -> None:
            finished.append(await ring.submit([(0, 2, False)]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit)
            await trio.testing.wait_all_tasks_blocked()
            finish(ring, other)
            await trio.testing.wait_all_tasks_blocked()
            assert finished == []
            finish(ring, other + 1)
        assert finished == [Used(other + 1, 0)]
        assert await ring.wait_used() == [Used(other, 0)]

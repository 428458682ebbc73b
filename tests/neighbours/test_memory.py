"""What a VM does with its own memory, beside another VM."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import trio

from protocol.virtio_balloon import Queue
from tests.support.end_to_end import BLOCK, MIB, PAGE, ByHand, by_hand, fill
from tests.support.helpers import GIB, memfd
from tests.support.hostile.neighbours import PATIENCE, answers, hostile, neighbour, serves
from tests.support.huge_pages import HugePages
from vhost_balloon.memory.syscalls import punch_hole
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.ring import DriverRing

TIB = 1 << 40
HUGE = 2 * MIB


def spare(wanted: int) -> int:
    """So much memory, or less where this machine has not twice that to spare."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    found = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return min(wanted, found * 1024 // 2) & -HUGE


def mapped(pid: int) -> int:
    """Bytes of a process's address space in use."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * PAGE


async def fill_address_space(guest: ByHand, pid: int) -> int:
    """Have the daemon map sparse files until it can map no more; bytes. The others it leaves
    alone."""
    total, size, at = 0, 64 * TIB, TIB
    while size >= HUGE:
        before = mapped(pid)
        fd = memfd(size)
        user = at + (1 << 60)  # where none of the guest's memory is
        payload = b"".join(number.to_bytes(8, "little") for number in (0, at, size, user, 0))
        await guest.front_end.command(37, payload, [fd.fileno()])
        at += size
        if mapped(pid) - before < size:
            size //= 2
        else:
            total += size
        fd.close()
    return total


async def test_sparse_files_that_fill_the_address_space() -> None:
    with neighbour() as beside, hostile() as daemon:
        async with by_hand(daemon.socket) as guest:
            assert await fill_address_space(guest, daemon.pid) > 100 * TIB
            guest.rings[Queue.INFLATE].add([guest.pfns([8 * MIB // PAGE])])
            guest.rings[Queue.INFLATE].kick()
            await beside.goes_on()
        if daemon.running():  # it may end: it cannot even start a thread
            await serves(daemon.socket)


async def test_a_ring_in_a_huge_page_that_is_punched_while_the_pool_is_empty(
    huge_pages: HugePages,
) -> None:
    ram = huge_pages.ram(4 * HUGE, reserve=False)
    with neighbour() as beside, hostile("--discard-hugetlb") as daemon:
        async with by_hand(daemon.socket, ram) as guest:
            kick = guest.rings[Queue.INFLATE].kick_event
            assert kick is not None
            huge_pages.exhaust()
            punch_hole(ram.regions[0].fd, 0, HUGE)
            huge_pages.exhaust()
            kick.signal()
            ended = daemon._started()
            with trio.fail_after(PATIENCE):
                assert await trio.to_thread.run_sync(ended.wait) == -signal.SIGBUS
            await beside.goes_on()


async def test_a_file_that_its_owner_allocates() -> None:
    """Our calls wait for the lock on that file."""
    size = spare(6 * GIB)
    with neighbour() as beside, hostile() as daemon:
        ram = GuestRam.create(size)
        async with by_hand(daemon.socket, ram) as guest, trio.open_nursery() as nursery:
            fd = ram.regions[0].fd
            nursery.start_soon(trio.to_thread.run_sync, os.posix_fallocate, fd, 0, size)
            for number in range(8):
                with trio.fail_after(PATIENCE):
                    await guest.report((size // 2 + number * BLOCK, BLOCK))
            await beside.goes_on()
            await answers(guest)
        await serves(daemon.socket)


async def test_a_large_vm_that_ends() -> None:
    """The last close of its memory, which frees it, is its daemon's."""
    size = spare(4 * GIB)
    with neighbour() as beside, hostile() as daemon:
        ram = GuestRam.create(size)
        async with by_hand(daemon.socket, ram):
            os.posix_fallocate(ram.regions[0].fd, 0, size)
            ram.close()
            await beside.goes_on()
        await serves(daemon.socket)
        await beside.goes_on()


async def test_a_ring_that_is_moved_over_holes() -> None:
    """Each place costs memory, which is the daemon's to allocate."""
    with neighbour() as beside, hostile() as daemon:
        ram = GuestRam.create(GIB)
        async with by_hand(daemon.socket, ram, features=None) as guest:
            front_end, ring = guest.front_end, DriverRing(ram, 64)
            await guest.start()
            await guest.stop()
            ring.size = 32768
            before = ram.resident()
            for number in range(512):
                ring.descriptors = 2 * MIB + number * MIB
                ring.used, ring.available = ring.descriptors + 640 * 1024, ring.descriptors + 524288
                await front_end.start_ring(0, ring)
                await front_end.get_vring_base(0)
            assert ram.resident() - before > 128 * MIB
            await beside.goes_on()
        await serves(daemon.socket)


async def test_memory_that_comes_and_goes_under_requests() -> None:
    with neighbour() as beside, hostile() as daemon:
        async with by_hand(daemon.socket) as guest:
            for number in range(200):
                dimm = guest.ram.add(64 * MIB, GIB)
                await guest.front_end.add_region(dimm)
                fill(guest.ram, GIB, BLOCK)
                await guest.report((GIB, BLOCK))
                assert guest.ram.resident_in(GIB, BLOCK) == 0, number
                await guest.front_end.remove_region(dimm)
                guest.ram.remove(dimm)
            await beside.goes_on()
            await answers(guest)

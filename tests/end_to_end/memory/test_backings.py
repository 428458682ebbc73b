"""Backings of guest memory, end to end: tmpfs, other file systems, huge pages, terabytes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from protocol.virtio_balloon import Queue
from tests.support.command import daemon
from tests.support.end_to_end import (
    BLOCK,
    MIB,
    PAGE,
    ByHand,
    LogLines,
    by_hand,
    fill,
    is_filled,
    is_refused,
    refused,
    serving,
)
from tests.support.huge_pages import HugePages
from vhost_balloon.memory import syscalls
from vhost_balloon.simulator.guest import running_guest
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.options import DriverOptions
from vhost_balloon.vm.vm import Vm

HUGE = 2 * MIB


async def report_one_block(guest: ByHand, vm: Vm) -> int:
    """Fill and report a block that is off by one page; return the bytes that remain."""
    fill(guest.ram, 8 * MIB, 2 * BLOCK)
    await guest.report((8 * MIB + PAGE, BLOCK))
    assert is_filled(guest.ram, 8 * MIB, PAGE)
    assert is_filled(guest.ram, 12 * MIB + PAGE, BLOCK - PAGE)
    return guest.ram.resident_in(8 * MIB + PAGE, BLOCK)


def file_on(directory: str | Path, size: int) -> int:
    """Create a file without a name."""
    fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC)
    os.ftruncate(fd, size)
    return fd


async def test_tmpfs_files_are_discarded(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines
) -> None:
    ram = GuestRam.create(32 * MIB, fd=file_on("/dev/shm", 32 * MIB))
    async with serving(tmp_path) as host, by_hand(host.path(), ram) as guest:
        assert log_lines.having("warning: vm1", "not sealed")
        assert await report_one_block(guest, host.vm()) == 0
        assert host.vm().counters.freed_bytes == BLOCK


@pytest.mark.parametrize("forced", [False, True])
async def test_other_file_systems_only_if_forced(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines, forced: bool
) -> None:
    fd = file_on(Path(__file__).parent, 32 * MIB)
    switches = ["--discard-other-filesystems"] if forced else []
    async with (
        serving(tmp_path, *switches) as host,
        by_hand(host.path(), GuestRam.create(32 * MIB, fd=fd)) as guest,
    ):
        if host.vm().statistics().regions[0].backing != "other":
            pytest.skip("the checkout lies on tmpfs")
        fill(guest.ram, 8 * MIB, BLOCK)
        await guest.report((8 * MIB, BLOCK))
        assert refused(host.vm()) == ({} if forced else {"filesystem": BLOCK})
        assert guest.ram.read(8 * MIB, BLOCK) == (b"\0" if forced else b"\xa5") * BLOCK
        assert bool(log_lines.having("vm1", "will not be discarded: filesystem")) != forced


async def test_shmem_huge_pages_are_discarded_in_small_ones(
    tmp_path: Path, still_clock: MockClock, shmem_huge_pages: None
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        fd = guest.ram.regions[0].fd
        assert os.fstat(fd).st_blksize == 2 * MIB, "what st_blksize says of a plain memfd"
        assert host.vm().statistics().regions[0].page_size == PAGE
        before = guest.ram.resident()
        assert await report_one_block(guest, host.vm()) == 0
        freed = host.vm().counters.freed_bytes
        assert BLOCK - 2 * MIB <= freed <= BLOCK
        assert not refused(host.vm())
        assert guest.ram.resident() == before + 2 * BLOCK - freed


async def test_4_tib_cost_no_memory(tmp_path: Path, still_clock: MockClock) -> None:
    def spent() -> int:
        """Page tables and memory of this process in KiB."""
        fields = dict(
            line.split(":") for line in Path("/proc/self/status").read_text().splitlines()
        )
        return sum(int(fields[name].split()[0]) for name in ("VmRSS", "VmPTE"))

    ram = GuestRam.create(64 * MIB)
    for number in range(1, 5):
        ram.add(1 << 40, number << 40)
    before = spent()
    async with serving(tmp_path) as host, by_hand(host.path(), ram) as guest:
        assert host.vm().statistics().guest_memory == (4 << 40) + 64 * MIB
        top = (5 << 40) - BLOCK
        fill(ram, top, BLOCK)
        await guest.report((top, BLOCK), (1 << 40, BLOCK))
        assert host.vm().counters.freed_bytes == BLOCK
        await guest.works(host.vm())
        assert spent() - before < 16 << 10
        assert ram.resident() < 2 * MIB


# Huge pages


@pytest.mark.parametrize("allowed", [False, True])
async def test_hugetlb_only_if_allowed(
    tmp_path: Path,
    still_clock: MockClock,
    log_lines: LogLines,
    huge_pages: HugePages,
    allowed: bool,
) -> None:
    switches = ["--discard-hugetlb"] if allowed else []
    ram = huge_pages.ram(16 * HUGE)
    async with serving(tmp_path, *switches) as host, by_hand(host.path(), ram) as guest:
        fill(ram, 4 * HUGE, 8 * HUGE)
        before, free = ram.resident(), huge_pages.free()
        await guest.report((6 * HUGE, BLOCK), (4 * HUGE, BLOCK))
        await guest.inflate(range(8 * HUGE // PAGE, 9 * HUGE // PAGE))
        freed = 5 * HUGE if allowed else 0
        assert host.vm().counters.freed_bytes == before - ram.resident() == freed
        assert huge_pages.free() - free == freed // HUGE
        assert refused(host.vm()) == ({} if allowed else {"hugetlb": 5 * HUGE})
        assert ram.read(4 * HUGE, 5 * HUGE) == (b"\0" if allowed else b"\xa5") * 5 * HUGE
        assert is_filled(ram, 9 * HUGE, 3 * HUGE)
        assert bool(log_lines.having("vm1", "will not be discarded: hugetlb")) != allowed


async def test_partial_huge_pages_are_neither_freed_nor_zeroed(
    tmp_path: Path, still_clock: MockClock, huge_pages: HugePages
) -> None:
    ram = huge_pages.ram(16 * HUGE)
    async with serving(tmp_path, "--discard-hugetlb") as host, by_hand(host.path(), ram) as guest:
        fill(ram, 4 * HUGE, 8 * HUGE)
        await guest.inflate([4 * HUGE // PAGE, (6 * HUGE - 1) // PAGE])
        await guest.report((8 * HUGE + PAGE, BLOCK))
        await guest.report((0, PAGE), (HUGE - PAGE, PAGE))  # in the huge page of the rings
        assert host.vm().counters.freed_bytes == HUGE
        assert refused(host.vm()) == {"partial-huge-page": HUGE, "ring": 2 * PAGE}
        assert host.vm().statistics().huge_pages == (2, 0, 2 * PAGE)
        assert ram.read(9 * HUGE, HUGE) == bytes(HUGE)
        assert is_filled(ram, 4 * HUGE, 5 * HUGE)
        assert is_filled(ram, 10 * HUGE, 2 * HUGE)


async def test_an_empty_pool_hurts_nobody(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines, huge_pages: HugePages
) -> None:
    beside = tmp_path / "beside.sock"
    ram = huge_pages.ram(16 * HUGE, reserve=False)
    fill(ram, 0, HUGE)  # the driver's own page; all others are holes
    fill(ram, 8 * HUGE, HUGE)
    with daemon(f"--socket-path={beside}"):
        async with (
            serving(tmp_path, "--discard-hugetlb") as host,
            by_hand(beside) as other,
        ):
            huge_pages.exhaust()
            async with by_hand(host.path(), ram) as guest:
                vm = host.vm()
                # Where PFNs lie in a hole they read as 0, and the pool is not asked for a page.
                await guest.rings[Queue.INFLATE].submit([(12 * HUGE, 256, False)])
                assert vm.counters.inflated_bytes == PAGE
                await guest.report((8 * HUGE, HUGE))
                assert vm.counters.freed_bytes == HUGE
                assert huge_pages.free() == 1
                huge_pages.exhaust()
                # A ring in a hole cannot be given its page: refused, not a SIGBUS later.
                index = guest.indexes[Queue.REPORTING]
                await guest.front_end.get_vring_base(index)
                ring = guest.rings[Queue.REPORTING]
                ring.used = 12 * HUGE
                await guest.front_end.set_vring_addr(index, ring)
                kick = guest.front_end.ports[index].renew_kick()
                payload = bytes([index, *bytes(7)])
                assert await is_refused(guest.front_end, 12, payload, kick.fileno())
                assert log_lines.having("vm1: refused SET_VRING_KICK", "cannot be allocated")
            fill(other.ram, 8 * MIB, BLOCK)
            await other.report((8 * MIB, BLOCK))
            assert other.ram.resident_in(8 * MIB, BLOCK) == 0


async def test_a_ring_page_that_its_owner_takes_away_ends_one_daemon(
    tmp_path: Path, huge_pages: HugePages
) -> None:
    """The pool is empty when the daemon looks at the ring: SIGBUS, which nobody could catch for
    one VM of several."""
    mine, beside = tmp_path / "mine.sock", tmp_path / "beside.sock"
    ram = huge_pages.ram(16 * HUGE, reserve=False)
    with daemon(f"--socket-path={mine}") as victim, daemon(f"--socket-path={beside}") as other:
        async with by_hand(beside) as healthy, by_hand(mine, ram) as guest:
            kick = guest.rings[Queue.REPORTING].kick_event
            assert kick is not None
            fd = ram.regions[0].fd
            syscalls.punch_hole(fd, 0, os.fstat(fd).st_size)
            huge_pages.exhaust()
            kick.signal()
            assert await trio.to_thread.run_sync(victim.process.wait, 20) == -signal.SIGBUS
            fill(healthy.ram, 8 * MIB, BLOCK)
            await healthy.report((8 * MIB, BLOCK))
            assert healthy.ram.resident_in(8 * MIB, BLOCK) == 0
        assert other.end()[0] == 0


async def test_a_simulated_guest_on_huge_pages(tmp_path: Path, huge_pages: HugePages) -> None:
    ram, options = huge_pages.ram(16 * HUGE), DriverOptions(report_delay=None)
    async with (
        serving(tmp_path, "--discard-hugetlb") as host,
        running_guest(host.path(), ram, options) as guest,
    ):
        await guest.touch(10 * HUGE)
        await guest.free(6 * HUGE)
        await guest.driver.report()
        assert guest.resident() <= 7 * HUGE
        assert await guest.verify() == 0

"""Host pages larger than the balloon's, end to end: freed once the guest has given all of one."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from protocol.virtio_balloon import BalloonFeature, Queue
from tests.support.end_to_end import (
    LINUX,
    MIB,
    PAGE,
    ByHand,
    by_hand,
    fill,
    is_filled,
    refused,
    serving,
)
from tests.support.huge_pages import HugePages
from vhost_balloon.memory import syscalls
from vhost_balloon.memory.discard import PunchResult, punch
from vhost_balloon.memory.gathering import Gathering, Grid
from vhost_balloon.memory.region import Part
from vhost_balloon.memory.syscalls import TMPFS_MAGIC, Filesystem
from vhost_balloon.memory.vector import RangeVector
from vhost_balloon.queues.decode import GATHERED_NUMBERS, READ_PFNS, Requests, Slice, pages
from vhost_balloon.queues.virtqueue import ReadMemory
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.ring import DriverRing
from vhost_balloon.vm.vm import Vm

SIZES = [16 << 10, 64 << 10, 2 << 20]
BASE = 8 * MIB
HUGE = 2 * MIB


@pytest.fixture(params=SIZES, ids=["16 KiB", "64 KiB", "2 MiB"])
def page_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Make the daemon believe in host pages of this size."""
    size: int = request.param
    monkeypatch.setattr(syscalls, "filesystem", lambda fd: Filesystem(TMPFS_MAGIC, size))
    return size


@asynccontextmanager
async def guest_of(
    tmp_path: Path, *options: str, features: int = LINUX, ram: GuestRam | None = None
) -> AsyncIterator[tuple[ByHand, Vm]]:
    async with (
        serving(tmp_path, *options) as host,
        by_hand(host.path(), ram or 32 * MIB, features=features) as guest,
    ):
        yield guest, host.vm()


def numbers(start: int, end: int) -> range:
    """Page numbers of the byte range start to end, relative to BASE."""
    return range((BASE + start) // PAGE, (BASE + end) // PAGE)


async def deflate(guest: ByHand, pages: Iterable[int]) -> None:
    await guest.rings[Queue.DEFLATE].submit([guest.pfns(pages)])


async def test_a_page_goes_with_the_request_that_completes_it(
    tmp_path: Path, still_clock: MockClock, page_size: int
) -> None:
    async with guest_of(tmp_path) as (guest, vm):
        fill(guest.ram, BASE, 3 * page_size)
        await guest.inflate(numbers(PAGE, page_size + PAGE))
        assert vm.counters.freed_bytes == 0
        assert vm.statistics().huge_pages == (2, 0, page_size)
        await guest.inflate(numbers(0, PAGE))
        assert guest.ram.resident_in(BASE, page_size) == 0
        assert is_filled(guest.ram, BASE + page_size, 2 * page_size)
        assert (vm.counters.freed_bytes, vm.counters.huge_pages_freed) == (page_size, 1)
        assert vm.statistics().huge_pages == (1, 1, PAGE)
        assert not refused(vm)


async def test_a_page_that_is_given_again_is_counted_again_only_if_it_was_used(
    tmp_path: Path, still_clock: MockClock, page_size: int
) -> None:
    async with guest_of(tmp_path) as (guest, vm):
        fill(guest.ram, BASE, page_size)
        for _ in range(3):
            await guest.inflate(numbers(0, page_size))
        assert (vm.counters.freed_bytes, vm.counters.huge_pages_freed) == (page_size, 1)
        await deflate(guest, numbers(0, PAGE))
        await guest.inflate(numbers(0, PAGE))
        assert vm.counters.huge_pages_freed == 1
        await deflate(guest, numbers(0, PAGE))
        fill(guest.ram, BASE, page_size)
        await guest.inflate(numbers(0, PAGE))
        assert (vm.counters.freed_bytes, vm.counters.huge_pages_freed) == (2 * page_size, 2)


async def test_a_request_that_was_taken_before_a_stop_is_not_remembered(
    tmp_path: Path, still_clock: MockClock, page_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its guest may have given up waiting, and have used the pages again."""

    def stopped(requests: Requests, read: ReadMemory, *, gathered: bool) -> Iterable[Slice]:
        still_clock.jump(2)
        return pages(requests, read, gathered=gathered)

    async with guest_of(tmp_path) as (guest, vm):
        fill(guest.ram, BASE, page_size)
        with monkeypatch.context() as patched:
            patched.setattr("vhost_balloon.queues.discarding.pages", stopped)
            await guest.inflate(numbers(PAGE, page_size))
        assert vm.statistics().huge_pages == (0, 0, 0)
        assert refused(vm) == {"late": page_size - PAGE}
        await guest.inflate(numbers(0, PAGE))
        assert is_filled(guest.ram, BASE, page_size)


async def test_few_pages_are_gathered_between_two_turns_of_the_other_tasks(
    tmp_path: Path, still_clock: MockClock, page_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []

    def count(name: str) -> None:
        method = getattr(Gathering, name)

        def counted(gathering: Gathering, grid: Grid, ranges: RangeVector) -> object:
            counts.append(len(ranges))
            return method(gathering, grid, ranges)

        monkeypatch.setattr(Gathering, name, counted)

    count("add")
    count("remove")
    scattered = numbers(0, 20 * MIB)[::2]
    async with guest_of(tmp_path) as (guest, _):
        await guest.inflate(scattered)
        await deflate(guest, scattered)
    assert sum(counts) == 2 * len(scattered)
    assert max(counts) < GATHERED_NUMBERS + READ_PFNS


async def test_what_was_taken_back_stays(
    tmp_path: Path, still_clock: MockClock, page_size: int
) -> None:
    async with guest_of(tmp_path) as (guest, _):
        fill(guest.ram, BASE, page_size)
        await guest.inflate(numbers(PAGE, page_size))
        await deflate(guest, numbers(page_size - PAGE, page_size))
        await guest.inflate(numbers(0, PAGE))
        assert is_filled(guest.ram, BASE, page_size)
        await guest.inflate(numbers(page_size - PAGE, page_size))
        assert guest.ram.resident_in(BASE, page_size) == 0


async def test_a_deflate_that_is_not_understood_forgets_all(
    tmp_path: Path, still_clock: MockClock, page_size: int
) -> None:
    async with guest_of(tmp_path) as (guest, vm):
        fill(guest.ram, BASE, page_size)
        await guest.inflate(numbers(PAGE, page_size))
        address, length, _ = guest.pfns([BASE // PAGE + 1])
        await guest.rings[Queue.DEFLATE].submit([(address, length, True)])
        await guest.inflate(numbers(0, PAGE))
        assert is_filled(guest.ram, BASE, page_size)
        assert refused(vm)["partial-huge-page"] == page_size - PAGE


async def test_without_must_tell_host_nothing_waits(
    tmp_path: Path, still_clock: MockClock, page_size: int
) -> None:
    features = LINUX & ~BalloonFeature.MUST_TELL_HOST
    async with guest_of(tmp_path, features=features) as (guest, vm):
        fill(guest.ram, BASE, page_size)
        await guest.inflate(numbers(PAGE, page_size))
        await guest.inflate(numbers(0, PAGE))
        assert is_filled(guest.ram, BASE, page_size)
        assert vm.statistics().huge_pages == (0, 0, 0)
        assert refused(vm) == {"unaligned": page_size}


@pytest.mark.parametrize("how", ["stop", "features", "disable", "memory", "add memory"])
async def test_what_was_gathered_is_forgotten(
    tmp_path: Path, still_clock: MockClock, page_size: int, how: str
) -> None:
    ram = GuestRam.create(32 * MIB)
    async with guest_of(tmp_path, ram=ram) as (guest, vm):
        fill(ram, BASE, page_size)
        await guest.inflate(numbers(PAGE, page_size))
        match how:
            case "stop":
                await guest.start(bases=await guest.stop())
            case "features":
                await guest.front_end.set_u64(2, LINUX | 1 << 30)
            case "disable":
                await guest.front_end.enable_rings(False)
                await guest.front_end.enable_rings(True)
            case "memory":
                await guest.front_end.set_mem_table()
            case "add memory":
                ram.add(4 * MIB, 1 << 32)
                await guest.front_end.add_region(ram.regions[-1])
        await guest.inflate(numbers(0, PAGE))
        assert is_filled(ram, BASE, page_size)
        assert refused(vm) == {"partial-huge-page": page_size - PAGE}
        assert vm.statistics().huge_pages == (1, 0, PAGE)


async def test_a_deflate_calls_off_a_discard_that_has_not_begun(
    tmp_path: Path, still_clock: MockClock, page_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A piece is one huge page here. The second one's is named by a deflate that comes while the
    first one is discarded."""
    monkeypatch.setattr("vhost_balloon.memory.discard.PIECE_RANGES", 1)
    async with guest_of(tmp_path) as (guest, vm):
        fill(guest.ram, BASE, 2 * page_size)
        await guest.inflate(numbers(PAGE, 2 * page_size - PAGE))
        taken = guest.pfns(numbers(page_size, page_size + PAGE))
        deflates = guest.rings[Queue.DEFLATE]

        def punching(piece: Part) -> PunchResult:
            if not deflates.available_index:
                deflates.add([taken])
                deflates.kick()
            return punch(piece)

        monkeypatch.setattr("vhost_balloon.queues.discarding.punch", punching)
        other = guest.pfns([(BASE + 2 * page_size) // PAGE - 1])
        ring = guest.rings[Queue.INFLATE]
        waiting = [guest.pfns([BASE // PAGE]), other]
        monkeypatch.setattr("vhost_balloon.queues.discarding.yield_to_others", turns(deflates))
        await ring.submit(waiting)
        assert deflates.used_index == 1
        assert guest.ram.resident_in(BASE, page_size) == 0
        assert is_filled(guest.ram, BASE + page_size, page_size)
        assert vm.counters.huge_pages_freed == 1
        assert not refused(vm)


def turns(ring: DriverRing) -> Callable[[], Awaitable[None]]:
    """Yield to other tasks until a request of this ring is used."""

    async def others() -> None:
        while ring.used_index < ring.available_index:
            await trio.lowlevel.cancel_shielded_checkpoint()

    return others


class Driver:
    """Gives random runs of pages and takes random ones back, with both rings at once."""

    def __init__(self, guest: ByHand, pages: range, seed: int) -> None:
        self.guest = guest
        self.pages = pages
        self.random = random.Random(seed)
        self.held = set(pages)
        self.balloon: set[int] = set()

    def run_of(self, pages: set[int]) -> list[int]:
        first = self.random.choice(self.pages)
        length = self.random.choice([1, 4, 16, 300])
        return [number for number in range(first, first + length) if number in pages]

    async def give(self, rounds: int) -> None:
        for _ in range(rounds):
            run = self.run_of(self.held)
            self.held -= set(run)
            if run:
                await self.guest.inflate(run)
            self.balloon |= set(run)

    async def take(self, rounds: int) -> None:
        for _ in range(rounds):
            run = self.run_of(self.balloon)[:40]
            self.balloon -= set(run)
            if run:
                await deflate(self.guest, run)
            for number in run:  # acknowledged: the guest owns them and uses them at once
                fill(self.guest.ram, number * PAGE, PAGE)
            self.held |= set(run)
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("seed", range(4))
async def test_no_page_that_the_guest_has_is_ever_lost(
    tmp_path: Path, still_clock: MockClock, page_size: int, seed: int
) -> None:
    count = {16 << 10: 24, 64 << 10: 12, 2 << 20: 2}[page_size]
    async with guest_of(tmp_path) as (guest, vm):
        fill(guest.ram, BASE, count * page_size)
        driver = Driver(guest, numbers(0, count * page_size), seed)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(driver.give, 60)
            nursery.start_soon(driver.take, 60)
        await driver.give(20)
        assert all(is_filled(guest.ram, number * PAGE, PAGE) for number in driver.held)
        await guest.inflate(sorted(driver.held))  # the rest: everything is in the balloon now
        assert guest.ram.resident_in(BASE, count * page_size) == 0
        assert vm.counters.huge_pages_freed >= count
        assert not refused(vm)


async def test_huge_pages_of_hugetlb_come_back_to_the_pool(
    tmp_path: Path, still_clock: MockClock, huge_pages: HugePages
) -> None:
    ram = huge_pages.ram(16 * HUGE)
    async with guest_of(tmp_path, "--discard-hugetlb", ram=ram) as (guest, vm):
        fill(ram, BASE, 8 * HUGE)
        free = huge_pages.free()
        pages = list(numbers(0, 4 * HUGE))
        random.Random(1).shuffle(pages)
        for start in range(0, len(pages), 256):
            await guest.inflate(pages[start : start + 256])
        assert huge_pages.free() == free + 4
        assert vm.counters.freed_bytes == 4 * HUGE
        await deflate(guest, pages[:256])
        assert is_filled(ram, BASE + 4 * HUGE, 4 * HUGE)

"""Guests that break their rings, end to end: the ring stops, everything else goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.virtio_balloon import Queue
from protocol.virtio_ring import DESCRIPTOR, DescriptorFlag
from tests.support.end_to_end import (
    BLOCK,
    MIB,
    PAGE,
    LogLines,
    by_hand,
    fill,
    guest_mappings,
    is_filled,
    open_fds,
    refused,
    serving,
)
from vhost_balloon.errors import RingErrorReason
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.ring import DriverRing

NEXT, WRITE, INDIRECT = (int(flag) for flag in DescriptorFlag)
OUTSIDE = 1 << 40
SIZE = 64
DATA = 8 * MIB

Break = Callable[[DriverRing], None]


def chain(*descriptors: tuple[int, int, int, int]) -> Break:
    """Publish a chain that starts at 0, of (address, length, flags, next)."""

    def do(ring: DriverRing) -> None:
        for slot, descriptor in enumerate(descriptors):
            ring.write_descriptor(slot, *descriptor)
        ring.publish(0)

    return do


def table(*descriptors: tuple[int, int, int, int], length: int | None = None) -> Break:
    """Publish one indirect descriptor with this table."""

    def do(ring: DriverRing) -> None:
        address = ring.ram.allocate(16 * len(descriptors), 16)
        ring.ram.write(address, b"".join(DESCRIPTOR.pack(*each) for each in descriptors))
        size = 16 * len(descriptors) if length is None else length
        ring.write_descriptor(0, address, size, INDIRECT)
        ring.publish(0)

    return do


def jump(distance: int) -> Break:
    return lambda ring: ring.publish_index(ring.available_index + distance)


PAGE_OF_DATA = (DATA, PAGE, WRITE, 0)

BREAKS: dict[str, tuple[str, Break]] = {
    "loop of two": ("loop", chain((DATA, PAGE, WRITE | NEXT, 1), (DATA, PAGE, WRITE | NEXT, 0))),
    "loop of one": ("loop", chain((DATA, PAGE, WRITE | NEXT, 0))),
    "loop of empty ones": ("loop", chain((DATA, 0, NEXT, 0))),
    "next is the size": ("next", chain((DATA, PAGE, WRITE | NEXT, SIZE))),
    "next is 65535": ("next", chain((DATA, PAGE, WRITE | NEXT, 65535))),
    "head is the size": ("head", lambda ring: ring.publish(SIZE)),
    "head is 65535": ("head", lambda ring: ring.publish(65535)),
    "index jumps": ("available-index", jump(SIZE + 1)),
    "index goes back": ("available-index", jump(-1)),
    "indirect with next": ("indirect", chain((DATA, 16, INDIRECT | NEXT, 1), PAGE_OF_DATA)),
    "a chain with a table of 64": (
        "indirect",
        chain((DATA, PAGE, WRITE | NEXT, 1), (0, 16 * SIZE, INDIRECT, 0)),
    ),
    "indirect in a table": ("indirect", table((DATA, 16, INDIRECT, 0))),
    "table of 65": ("indirect", table(*[(DATA, PAGE, WRITE | NEXT, 1)] * (SIZE + 1))),
    "table of 4 GiB": ("indirect", table(PAGE_OF_DATA, length=(1 << 32) - 16)),
    "table of 0 bytes": ("indirect", table(PAGE_OF_DATA, length=0)),
    "table of 15 bytes": ("indirect", table(PAGE_OF_DATA, length=15)),
    "table of 17 bytes": ("indirect", table(PAGE_OF_DATA, length=17)),
    "table loops": ("loop", table((DATA, PAGE, WRITE | NEXT, 1), (DATA, PAGE, WRITE | NEXT, 0))),
    "next outside the table": ("next", table((DATA, PAGE, WRITE | NEXT, 1))),
    "table outside memory": ("buffer", chain((OUTSIDE, 16, INDIRECT, 0))),
    "table over the end": ("buffer", chain((64 * MIB - 16, 32, INDIRECT, 0))),
    "table at the end of all": ("buffer", chain(((1 << 64) - 16, 32, INDIRECT, 0))),
}


@pytest.mark.parametrize(("reason", "damage"), BREAKS.values(), ids=list(BREAKS))
async def test_a_broken_ring_stops_alone(
    tmp_path: Path,
    still_clock: MockClock,
    log_lines: LogLines,
    reason: str,
    damage: Break,
) -> None:
    async with (
        serving(tmp_path) as host,
        by_hand(host.path()) as guest,
    ):
        vm, ring = host.vm(), guest.rings[Queue.REPORTING]
        index = guest.indexes[Queue.REPORTING]
        err = guest.front_end.ports[index].err
        fill(guest.ram, DATA, BLOCK)
        await guest.report((DATA + PAGE, PAGE))
        damage(ring)
        ring.kick()
        assert await err.wait() == 1
        error = RingErrorReason(reason)
        assert vm.counters.ring_errors == {("reporting", error): 1}
        assert log_lines.having("warning: vm1", "reporting", f"ring {index}", "stopped")
        assert vm.statistics().queues[index].broken == reason
        assert vm.counters.freed_bytes == PAGE
        # Nothing more happens on it ...
        for _ in range(3):
            ring.kick()
            await wait_all_tasks_blocked()
        assert (ring.used_index, err.take()) == (1, 0)
        # ... the others go on ...
        await guest.works(vm)
        # ... and it works again once the driver has set it up anew.
        bases = await guest.stop()
        assert bases[index] == 1
        guest.fresh()
        await guest.start()
        assert vm.statistics().queues[index].broken is None
        await guest.report((DATA, PAGE))
        assert not guest.ram.is_resident(DATA)
        assert sum(vm.counters.ring_errors.values()) == 1


@pytest.mark.parametrize(
    ("address", "length"),
    [(OUTSIDE, 4), (64 * MIB - 4, 8), ((1 << 64) - 4, 8), (OUTSIDE, (1 << 32) - 1)],
    ids=["outside", "over the end", "wraps", "4 GiB"],
)
@pytest.mark.parametrize("queue", [Queue.INFLATE, Queue.DEFLATE, Queue.STATS])
async def test_a_buffer_that_is_no_memory_stops_its_ring(
    tmp_path: Path,
    still_clock: MockClock,
    log_lines: LogLines,
    queue: Queue,
    address: int,
    length: int,
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        ring, index = guest.rings[queue], guest.indexes[queue]
        ring.add([(address, length, False)])
        ring.kick()
        assert await guest.front_end.ports[index].err.wait() == 1
        assert host.vm().counters.ring_errors == {(queue.value, RingErrorReason.BUFFER): 1}
        assert log_lines.having("vm1", queue.value, "outside memory")
        assert ring.used_index == 0
        fill(guest.ram, DATA, BLOCK)
        await guest.report((DATA, BLOCK))
        assert host.vm().counters.freed_bytes == BLOCK
        await guest.stop()
        guest.fresh()
        await guest.start()
        await guest.works(host.vm())


async def test_what_comes_before_the_damage_is_done(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        ring = guest.rings[Queue.REPORTING]
        fill(guest.ram, DATA, BLOCK)
        ring.add([(DATA, PAGE, True)])
        ring.add([(DATA + PAGE, PAGE, True)])
        ring.publish(SIZE)
        ring.kick()
        await guest.front_end.ports[guest.indexes[Queue.REPORTING]].err.wait()
        assert ring.used_index == 2
        assert host.vm().counters.freed_bytes == 2 * PAGE
        assert (await guest.stop())[guest.indexes[Queue.REPORTING]] == 2


async def test_a_pfn_buffer_that_is_no_memory_leaves_its_request_unused(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        ring = guest.rings[Queue.INFLATE]
        fill(guest.ram, DATA, BLOCK)
        ring.add([guest.pfns([DATA // PAGE]), (OUTSIDE, 4, False)])
        ring.kick()
        await guest.front_end.ports[0].err.wait()
        assert ring.used_index == 0
        assert is_filled(guest.ram, DATA + PAGE, BLOCK - PAGE)
        assert (await guest.stop())[0] == 0
        assert host.vm().counters.requests[Queue.INFLATE] == 0


async def test_without_an_err_eventfd_the_log_says_it(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.front_end.set_vring_fd(14, guest.indexes[Queue.REPORTING], None)
        guest.rings[Queue.REPORTING].publish(SIZE)
        guest.rings[Queue.REPORTING].kick()
        await guest.works(host.vm())
        assert log_lines.having("vm1: reporting", "stopped: head 64")


async def test_damage_in_a_loop_does_not_fill_the_log(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        before = open_fds()
        for _ in range(50):
            guest.rings[Queue.REPORTING].publish(SIZE)
            guest.rings[Queue.REPORTING].kick()
            await guest.front_end.ports[guest.indexes[Queue.REPORTING]].err.wait()
            await guest.inflate([1 << 30])
            await guest.stop()
            guest.fresh()
            await guest.start()
        assert len(log_lines.having("warning: vm1")) == 10
        assert sum(host.vm().counters.ring_errors.values()) == 50
        assert refused(host.vm()) == {"outside-memory": 50 * PAGE}
        assert open_fds() == before
        await guest.works(host.vm())


async def test_memory_of_a_ring_is_removed_under_it(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        dimm = guest.ram.add(16 * MIB, 1 << 32)
        await guest.front_end.add_region(dimm)
        index, ring = guest.indexes[Queue.REPORTING], guest.rings[Queue.REPORTING]
        bases = await guest.stop()
        old, ring.used = ring.used, dimm.start
        await guest.start(bases=bases)
        mapped = guest_mappings()
        await guest.front_end.remove_region(dimm)
        assert guest_mappings() == mapped - 1
        assert await guest.front_end.ports[index].err.wait() == 1
        assert log_lines.having("vm1: ", f"(ring {index}) stopped: its memory was removed")
        await guest.works(host.vm())
        await guest.front_end.add_region(dimm)
        await guest.works(host.vm())
        bases = await guest.stop()
        ring.used = old
        await guest.start(bases=bases)
        fill(guest.ram, DATA, BLOCK)
        await guest.report((DATA, BLOCK))
        assert host.vm().statistics().guest_memory == 80 * MIB


async def test_memory_of_a_broken_ring_is_removed(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        dimm = guest.ram.add(16 * MIB, 1 << 32)
        await guest.front_end.add_region(dimm)
        index, ring = guest.indexes[Queue.REPORTING], guest.rings[Queue.REPORTING]
        bases = await guest.stop()
        ring.used = dimm.start
        await guest.start(bases=bases)
        ring.publish(SIZE)
        ring.kick()
        assert await guest.front_end.ports[index].err.wait() == 1
        mapped = guest_mappings()
        await guest.front_end.remove_region(dimm)
        assert guest_mappings() == mapped - 1
        assert sum(host.vm().counters.ring_errors.values()) == 1
        await guest.works(host.vm())
        await guest.stop()


async def test_a_truncated_file_hurts_one_ring(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines
) -> None:
    ram = GuestRam.create(64 * MIB)
    ram.add(16 * MIB, 1 << 32, sealed=False)
    async with serving(tmp_path) as host, by_hand(host.path(), ram) as guest:
        os.ftruncate(ram.regions[1].fd, 4 * MIB)
        await guest.report(((1 << 32) + 8 * MIB, BLOCK), (1 << 32, 16 * MIB))
        ring = guest.rings[Queue.DEFLATE]
        ring.add([((1 << 32) + 8 * MIB, 4, False)])
        ring.kick()
        await guest.front_end.ports[1].err.wait()
        assert log_lines.having("vm1: deflate", "memory file was truncated")
        await guest.works(host.vm())


async def test_a_guest_that_scribbles_all_over_its_rings(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with (
        serving(tmp_path) as host,
        by_hand(host.path()) as guest,
    ):
        for seed in range(30):
            for queue in guest.indexes:
                ring = guest.rings[queue]
                noise = DESCRIPTOR.pack(seed * 0x1234567, seed * 77777, seed % 8, seed * 5 % 80)
                ring.ram.write(ring.descriptors, noise * SIZE)
                ring.ram.write(ring.available + 4, bytes([seed * 3 % 70, 0]) * SIZE)
                ring.publish_index(seed % 70)
                ring.kick()
            await trio.sleep(0.01)
            bases = await guest.stop()
            assert set(bases) == set(guest.indexes.values())
            guest.fresh()
            await guest.start()
        await guest.works(host.vm())
        assert host.vm().counters.ring_errors

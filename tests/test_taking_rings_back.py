"""A front end that wants its ring or memory back, end to end: it waits for one batch at most."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.vhost_user import Request
from protocol.virtio_balloon import Queue
from tests.end_to_end import (
    BLOCK,
    LINUX,
    MIB,
    PAGE,
    ByHand,
    Host,
    by_hand,
    eventually,
    fill,
    guest_mappings,
    open_fds,
    serving,
)
from vhost_balloon.counters import Counters
from vhost_balloon.deflate_processor import DeflateProcessor
from vhost_balloon.discard import Discarded, punch
from vhost_balloon.gathering import Gathering
from vhost_balloon.guest_memory import Part
from vhost_balloon.log import VmLog
from vhost_balloon.processors import HintProcessor
from vhost_balloon.ring import Processor
from vhost_balloon.simulator import GuestRam
from vhost_balloon.stats_processor import StatsProcessor
from vhost_balloon.turn import Turn
from vhost_balloon.virtqueue import Buffer, Chain

GIB = 1 << 30
BATCH = 64 * MIB
LIMIT = 0.5


class Gate(AbstractContextManager[None]):
    """Lets discards through one by one, and all of them at the end."""

    def __init__(self) -> None:
        self.waiting = 0
        self.done: list[list[Part]] = []
        self._open = trio.Semaphore(0)

    async def discard(self, batch: list[Part]) -> Discarded:
        self.waiting += 1
        with trio.CancelScope(shield=True):  # as a thread that punches
            await self._open.acquire()
        self.waiting -= 1
        self.done.append(batch)
        return punch(batch)

    def let_one_pass(self) -> None:
        self._open.release()

    def __exit__(self, *error: object) -> None:
        for _ in range(100):
            self.let_one_pass()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate = Gate()
    monkeypatch.setattr("vhost_balloon.processors.discard", gate.discard)
    return gate


# Rings that are wanted back


@pytest.mark.parametrize("size", [64 * GIB, 504 * GIB])
async def test_a_ring_is_given_back_at_once(tmp_path: Path, size: int) -> None:
    ram = GuestRam.create(64 * MIB)
    ram.add(size, 1 << 40)
    async with serving(tmp_path) as host, by_hand(host.path(), ram, queue_size=256) as guest:
        ring, index = guest.rings[Queue.REPORTING], guest.indexes[Queue.REPORTING]
        parts = range(1 << 40, (1 << 40) + size, 3 * GIB)
        ring.add([(start, 3 * GIB, True) for start in parts])
        ring.kick()
        await eventually(lambda: sum(host.vm().counters.discard_seconds.counts) > 0)
        started = time.perf_counter()
        base = await guest.front_end.get_vring_base(index)
        seconds = time.perf_counter() - started
        print(f"GET_VRING_BASE against {size // GIB} GiB: {seconds * 1000:.1f} ms")
        assert seconds < 0.5
        assert (base, ring.used_index) == (0, 0), "the request is left unused"
        assert host.vm().counters.requests[Queue.REPORTING] == 0
        batches = sum(host.vm().counters.discard_seconds.counts)
        assert batches * BATCH < size
        with trio.move_on_after(0.05):
            await ring.wait_used()
        assert ring.used_index == 0
        assert sum(host.vm().counters.discard_seconds.counts) == batches, "a stopped ring rests"
        bases = await guest.stop()
        assert bases[index] == base
        await guest.start(bases=bases)
        with trio.fail_after(5):
            assert len(await ring.wait_used()) == 1
        assert host.vm().counters.requests[Queue.REPORTING] == 1


@pytest.mark.parametrize("queue", [Queue.INFLATE, Queue.DEFLATE])
@pytest.mark.parametrize("inside", [True, False])
async def test_endless_pfns_do_not_hold_a_ring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queue: Queue, inside: bool
) -> None:
    """Gigabytes of PFNs, all 0: in a hole of the file, which costs the guest nothing."""
    slices: list[float] = []
    monkeypatch.setattr("vhost_balloon.processors.WORK_LIMIT", 60.0)
    ram = GuestRam.create(64 * MIB, guest_address=0 if inside else PAGE)
    ram.add(4 * GIB, 1 << 40)
    async with serving(tmp_path) as host, by_hand(host.path(), ram) as guest:
        ring = guest.rings[queue]
        ring.add([(1 << 40, 4 * GIB - PAGE, False)] * 60)
        ring.kick()
        with trio.move_on_after(0.1):
            await ring.wait_used()
        started = time.perf_counter()
        base = await guest.front_end.get_vring_base(guest.indexes[queue])
        slices.append(time.perf_counter() - started)
        assert slices[0] < 2
        if queue is Queue.INFLATE:
            assert (base, ring.used_index) == (0, 0)
        else:  # a slice of it is looked at, and the guest has its answer
            assert (base, ring.used_index) == (1, 1)
            assert host.vm().counters.refused_bytes["late"] > 0


Want = Callable[[Host, ByHand], Awaitable[object]]


async def get_vring_base(host: Host, guest: ByHand) -> None:
    assert await guest.front_end.get_vring_base(guest.indexes[Queue.REPORTING]) == 0


async def set_mem_table(host: Host, guest: ByHand) -> None:
    await guest.front_end.set_mem_table()


async def rem_mem_reg(host: Host, guest: ByHand) -> None:
    await guest.front_end.remove_region(guest.ram.regions[1])


async def reset_device(host: Host, guest: ByHand) -> None:
    await guest.front_end.command(Request.RESET_DEVICE)


async def disable(host: Host, guest: ByHand) -> None:
    await guest.front_end.enable_rings(False)


async def set_kick(host: Host, guest: ByHand) -> None:
    index = guest.indexes[Queue.REPORTING]
    kick = guest.front_end.ports[index].renew_kick()
    await guest.front_end.command(
        Request.SET_VRING_KICK, bytes([index, *bytes(7)]), [kick.fileno()]
    )


async def disconnect(host: Host, guest: ByHand) -> None:
    guest.front_end.close()
    await eventually(lambda: not host.vm().attached)


WANTS: list[Want] = [
    get_vring_base,
    set_mem_table,
    rem_mem_reg,
    reset_device,
    disable,
    set_kick,
    disconnect,
]
GOES_ON: list[Want] = [set_mem_table, rem_mem_reg, set_kick]


@pytest.mark.parametrize("want", WANTS)
async def test_whoever_wants_the_ring_waits_for_one_batch(
    tmp_path: Path, autojump_clock: MockClock, gate: Gate, want: Want
) -> None:
    ram = GuestRam.create(64 * MIB)
    ram.add(512 * MIB, GIB)
    async with serving(tmp_path) as host:
        await wait_all_tasks_blocked()
        async with by_hand(host.path(), ram) as guest, trio.open_nursery() as nursery:
            with gate:
                fill(ram, GIB, BATCH + BLOCK)
                ring = guest.rings[Queue.REPORTING]
                ring.add([(GIB, 512 * MIB, True)])
                ring.kick()
                await eventually(lambda: gate.waiting == 1)
                answered = trio.Event()

                async def ask() -> None:
                    await want(host, guest)
                    answered.set()

                nursery.start_soon(ask)
                with trio.move_on_after(0.2):
                    await answered.wait()
                assert not answered.is_set(), "a discard was running, and memory still mapped"
                assert guest_mappings() >= 3
                gate.let_one_pass()
                if want in GOES_ON:
                    for _ in range(8):
                        gate.let_one_pass()
                with trio.fail_after(1):
                    await answered.wait()
                if want not in GOES_ON:
                    assert len(gate.done) == 1
                    assert ring.used_index == 0
                    assert host.vm().counters.freed_bytes == BATCH
                else:
                    await eventually(lambda: ring.used_index == 1)
        await eventually(lambda: not host.vm().attached)
        assert guest_mappings() == 0


async def test_a_request_that_was_left_is_done_again(
    tmp_path: Path, autojump_clock: MockClock, gate: Gate
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), GIB) as guest:
        with gate:
            fill(guest.ram, 512 * MIB, BATCH + BLOCK)
            ring, counters = guest.rings[Queue.REPORTING], host.vm().counters
            ring.add([(512 * MIB, 2 * BATCH, True)])
            ring.kick()
            await eventually(lambda: gate.waiting == 1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guest.stop)
                await wait_all_tasks_blocked()
                gate.let_one_pass()
            assert (counters.freed_bytes, counters.reported_bytes) == (BATCH, 0)
            await guest.start(LINUX)
            for _ in range(2):
                gate.let_one_pass()
            await ring.wait_used()
            assert (counters.freed_bytes, counters.reported_bytes) == (BATCH + BLOCK, 2 * BATCH)
            assert counters.requests == {Queue.REPORTING: 1}


async def test_sigterm_comes_while_a_discard_runs(
    tmp_path: Path, autojump_clock: MockClock, gate: Gate
) -> None:
    before, ended = open_fds(), trio.Event()
    with GuestRam.create(GIB) as ram:

        async def daemon_with_guest(scope: trio.CancelScope) -> None:
            with scope:
                async with serving(tmp_path) as host, by_hand(host.path(), ram) as guest:
                    guest.rings[Queue.REPORTING].add([(512 * MIB, 2 * BATCH, True)])
                    guest.rings[Queue.REPORTING].kick()
                    await trio.sleep_forever()
            ended.set()

        async with trio.open_nursery() as nursery:
            with gate:
                scope = trio.CancelScope()
                nursery.start_soon(partial(daemon_with_guest, scope))
                await eventually(lambda: gate.waiting == 1)
                scope.cancel()
                await wait_all_tasks_blocked()
                assert not ended.is_set()
                gate.let_one_pass()
                with trio.fail_after(1):
                    await ended.wait()
        assert len(gate.done) == 1
    assert open_fds() == before


class EndlessQueue:
    """A guest that gives one buffer after the other, as fast as they are used."""

    def __init__(self) -> None:
        self.popped = 0

    def pop_plain(self) -> Chain | None:
        return next(self.popping()) if self.popped % 2 else None

    def popping(self) -> Iterator[Chain]:
        self.popped += 1
        assert self.popped < 100_000, "nobody else had a turn"
        yield Chain(0, [Buffer(0, 0, False)])

    def pending(self) -> int:
        return 1


@pytest.mark.parametrize("queue", [Queue.STATS, Queue.DEFLATE, Queue.FREE_PAGE])
async def test_a_ring_that_is_never_empty_starves_nobody(queue: Queue) -> None:
    endless = EndlessQueue()
    ring: Any = SimpleNamespace(
        virtqueue=endless, stopping=False, waiting_since=math.inf, complete=lambda heads: None
    )
    device: Any = SimpleNamespace(
        counters=Counters(),
        heartbeat=SimpleNamespace(found_late=lambda now: False),
        memory=SimpleNamespace(read=lambda address, length: b"", inside=lambda ranges: 0),
        log=VmLog("web1"),
        gathering=Gathering(),
    )
    processors: dict[Queue, Processor] = {
        Queue.STATS: StatsProcessor(device, Turn()),
        Queue.DEFLATE: DeflateProcessor(device, Queue.DEFLATE, Turn()),
        Queue.FREE_PAGE: HintProcessor(device, Turn()),
    }
    async with trio.open_nursery() as nursery:
        nursery.start_soon(processors[queue].drain, ring)
        while endless.popped < 10:
            await trio.lowlevel.checkpoint()
        ring.stopping = True

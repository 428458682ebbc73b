"""A front end takes back a ring or memory, end to end: it waits for at most one piece."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from protocol.vhost_user import Request
from protocol.virtio_balloon import Queue
from tests.support.end_to_end import (
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
from vhost_balloon.balloon.device import Balloon
from vhost_balloon.figures.counters import Counters
from vhost_balloon.log.lines import VmLog
from vhost_balloon.memory.discard import PunchResult, punch
from vhost_balloon.memory.gathering import Gathering
from vhost_balloon.memory.region import Part
from vhost_balloon.queues.deflate import DeflateProcessor
from vhost_balloon.queues.processor import HintProcessor
from vhost_balloon.queues.ring import Processor, StartedRing
from vhost_balloon.queues.stats import StatsProcessor
from vhost_balloon.queues.virtqueue import Buffer, Chain
from vhost_balloon.simulator.memory import GuestRam

GIB = 1 << 30
PIECE = 8 * MIB
LIMIT = 0.5


@pytest.fixture
def slow_pieces(monkeypatch: pytest.MonkeyPatch) -> list[Part]:
    """Make each piece take 5 ms, as on a slow host; return the discarded pieces."""
    done: list[Part] = []

    def slow(piece: Part) -> PunchResult:
        time.sleep(0.005)
        done.append(piece)
        return punch(piece)

    monkeypatch.setattr("vhost_balloon.queues.discarding.punch", slow)
    return done


# Rings that are taken back


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
        base = await guest.front_end.get_vring_base(index)
        assert (base, ring.used_index) == (0, 0), "the request is left unused"
        assert host.vm().counters.requests[Queue.REPORTING] == 0
        pieces = sum(host.vm().counters.discard_seconds.counts)
        assert pieces * PIECE < size
        with trio.move_on_after(0.05):
            await ring.wait_used()
        assert ring.used_index == 0
        assert sum(host.vm().counters.discard_seconds.counts) == pieces, "a stopped ring rests"
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
    monkeypatch.setattr("vhost_balloon.queues.processor.WORK_LIMIT", 60.0)
    ram = GuestRam.create(64 * MIB, guest_address=0 if inside else PAGE)
    ram.add(4 * GIB, 1 << 40)
    async with serving(tmp_path) as host, by_hand(host.path(), ram) as guest:
        ring = guest.rings[queue]
        ring.add([(1 << 40, 4 * GIB - PAGE, False)] * 60)
        ring.kick()
        with trio.move_on_after(0.1):
            await ring.wait_used()
        with trio.fail_after(20):
            base = await guest.front_end.get_vring_base(guest.indexes[queue])
        assert (base, ring.used_index) == (0, 0)


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
    await gone(host)


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
async def test_whoever_wants_the_ring_waits_for_a_piece_at_most(
    tmp_path: Path, still_clock: MockClock, slow_pieces: list[Part], want: Want
) -> None:
    """On this clock nothing is ever late: the request would take 2,048 pieces, and 10 s."""
    ram = GuestRam.create(64 * MIB)
    ram.add(16 * GIB, GIB)
    async with serving(tmp_path) as host:
        async with by_hand(host.path(), ram) as guest:
            fill(ram, GIB, 2 * PIECE)
            ring, vm = guest.rings[Queue.REPORTING], host.vm()
            ring.add([(GIB + number * 2 * GIB, 2 * GIB, True) for number in range(8)])
            ring.kick()
            await eventually_begun(slow_pieces)
            before = len(slow_pieces)
            await want(host, guest)
            most = 4 if want is get_vring_base else 40  # several messages, or the work resumes
            assert len(slow_pieces) - before <= most, "only as many turns as the messages take"
            if want is not rem_mem_reg:  # afterwards the ring names no memory
                assert (ring.used_index, vm.counters.requests[Queue.REPORTING]) == (0, 0)
        await gone(host)
        assert guest_mappings() == 0


async def eventually_begun(pieces: list[Part]) -> None:
    """Wait until a piece is discarded. No time passes on the test's clock."""
    while not pieces:
        await trio.lowlevel.checkpoint()


async def gone(host: Host) -> None:
    while host.vm().attached:
        await trio.lowlevel.checkpoint()


async def test_a_request_that_was_left_is_done_again(
    tmp_path: Path, still_clock: MockClock, slow_pieces: list[Part]
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), GIB) as guest:
        fill(guest.ram, 512 * MIB, PIECE + BLOCK)
        ring, counters = guest.rings[Queue.REPORTING], host.vm().counters
        ring.add([(512 * MIB, 256 * MIB, True)])
        ring.kick()
        await eventually_begun(slow_pieces)
        bases = await guest.stop()
        begun = len(slow_pieces)
        assert 1 <= begun < 32
        assert (counters.reported_bytes, ring.used_index) == (0, 0)
        await guest.start(LINUX, bases=bases)
        await ring.wait_used()
        assert len(slow_pieces) == begun + 32
        assert (counters.freed_bytes, counters.reported_bytes) == (PIECE + BLOCK, 256 * MIB)
        assert counters.requests == {Queue.REPORTING: 1}


async def test_sigterm_comes_while_a_request_is_served(
    tmp_path: Path, still_clock: MockClock, slow_pieces: list[Part]
) -> None:
    before = open_fds()
    with GuestRam.create(GIB) as ram:
        async with trio.open_nursery() as nursery:

            async def daemon_with_guest() -> None:
                async with serving(tmp_path) as host, by_hand(host.path(), ram) as guest:
                    guest.rings[Queue.REPORTING].add([(512 * MIB, 512 * MIB, True)])
                    guest.rings[Queue.REPORTING].kick()
                    await trio.sleep_forever()

            nursery.start_soon(daemon_with_guest)
            await eventually_begun(slow_pieces)
            nursery.cancel_scope.cancel()
        assert len(slow_pieces) < 8
    assert open_fds() == before


class EndlessQueue:
    """A guest that adds buffers as fast as they are used."""

    def __init__(self) -> None:
        self.popped = 0

    def pop_plain(self, most: int) -> list[Chain]:
        return list(self.popping()) if self.popped % 2 else []

    def popping(self) -> Iterator[Chain]:
        self.popped += 1
        assert self.popped < 100_000, "no other task had a turn"
        yield Chain(0, [Buffer(0, 0, False)])

    def pending(self) -> int:
        return 1


@pytest.mark.parametrize("queue", [Queue.STATS, Queue.DEFLATE, Queue.FREE_PAGE])
async def test_a_ring_that_is_never_empty_starves_nobody(queue: Queue) -> None:
    endless = EndlessQueue()
    ring: Any = SimpleNamespace(
        virtqueue=endless, stopping=False, waiting_since=math.inf, complete=lambda heads: None
    )
    ring.pop = partial(StartedRing.pop, ring)
    device: Any = SimpleNamespace(
        counters=Counters(),
        counted=lambda: None,
        wakefulness=SimpleNamespace(waited=lambda: 0.0),
        memory=SimpleNamespace(
            read=lambda address, length: b"", inside=lambda ranges: 0, has_grids=False
        ),
        log=VmLog("web1"),
        gathering=Gathering(),
        balloon=Balloon(),
    )
    processors: dict[Queue, Processor] = {
        Queue.STATS: StatsProcessor(device),
        Queue.DEFLATE: DeflateProcessor(device),
        Queue.FREE_PAGE: HintProcessor(device),
    }
    async with trio.open_nursery() as nursery:
        nursery.start_soon(processors[queue].drain, ring)
        while endless.popped < 10:
            await trio.lowlevel.checkpoint()
        ring.stopping = True

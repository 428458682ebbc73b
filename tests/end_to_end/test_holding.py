"""A request is never held for more than half a second, end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.virtio_balloon import Queue
from tests.support.end_to_end import (
    BLOCK,
    MIB,
    PAGE,
    LogLines,
    by_hand,
    fill,
    refused,
    serving,
)
from vhost_balloon.memory.discard import PunchResult, punch
from vhost_balloon.memory.region import Part

GIB = 1 << 30
PIECE = 8 * MIB
LIMIT = 0.5


@pytest.fixture
def slow_discards(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    """Each piece takes 3.75 ms, by trio's clock."""

    def slow(piece: Part) -> PunchResult:
        autojump_clock.jump(0.03 / 8)
        return punch(piece)

    monkeypatch.setattr("vhost_balloon.queues.discarding.punch", slow)


@pytest.mark.parametrize("size", [512 * MIB, 2 * GIB, 16 * GIB])
async def test_a_big_request_is_answered_in_time(
    tmp_path: Path,
    autojump_clock: MockClock,
    slow_discards: None,
    log_lines: LogLines,
    size: int,
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), 20 * GIB) as guest:
        fill(guest.ram, 2 * GIB, BLOCK)
        fill(guest.ram, 2 * GIB + size - BLOCK, BLOCK)
        started = trio.current_time()
        parts = min(size, 2 * GIB)
        used = await guest.report(*((2 * GIB + n, parts) for n in range(0, size, parts)))
        assert trio.current_time() - started <= LIMIT
        assert used.length == 0
        pieces = sum(host.vm().counters.discard_seconds.counts)
        late = refused(host.vm()).get("late", 0)
        assert pieces * PIECE + late == size
        assert (late == 0) == (size == 512 * MIB)
        assert bool(log_lines.having("vm1", "late")) == bool(late)
        assert guest.ram.resident_in(2 * GIB, BLOCK) == 0
        assert host.vm().counters.freed_bytes == BLOCK * (2 - bool(late))
        await guest.works(host.vm())


async def test_requests_that_queue_up_are_each_answered_in_time(
    tmp_path: Path, autojump_clock: MockClock, slow_discards: None
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), 20 * GIB) as guest:
        ring = guest.rings[Queue.REPORTING]
        started = trio.current_time()
        for number in range(1, 17):
            ring.add([(number * GIB, GIB, True)])
        ring.kick()
        while ring.used_index < 16:
            await ring.wait_used()
        assert trio.current_time() - started <= LIMIT
        pieces = sum(host.vm().counters.discard_seconds.counts)
        assert pieces * PIECE + refused(host.vm())["late"] == 16 * GIB


async def test_a_request_that_is_begun_twice_is_answered_in_time(
    tmp_path: Path, autojump_clock: MockClock, slow_discards: None
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), 20 * GIB) as guest:
        ring = guest.rings[Queue.REPORTING]
        started = trio.current_time()
        for number in range(1, 17):
            ring.add([(number * GIB, GIB, True)])
        ring.kick()
        await trio.sleep(0.3)
        await guest.front_end.set_mem_table()
        await ring.wait_used()
        assert trio.current_time() - started <= LIMIT


async def test_a_ring_that_is_never_empty_is_not_late_for_ever(
    tmp_path: Path, autojump_clock: MockClock, slow_discards: None
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        ring = guest.rings[Queue.REPORTING]

        async def add(number: int) -> None:
            fill(guest.ram, 8 * MIB, PAGE)
            ring.add([(8 * MIB, PAGE, True)])
            ring.kick()
            await trio.sleep(0.02)  # the next one arrives before this one is done

        for number in range(60):
            await add(number)
        assert trio.current_time() > 2 * LIMIT
        assert not refused(host.vm())


async def test_what_waited_through_a_gap_is_not_discarded(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await wait_all_tasks_blocked()
        fill(guest.ram, 8 * MIB, 2 * BLOCK)
        still_clock.jump(0.7)  # as after SIGSTOP: the daemon did not run meanwhile
        await guest.report((8 * MIB, BLOCK))
        assert guest.ram.resident_in(8 * MIB, BLOCK) == BLOCK
        assert refused(host.vm()) == {"late": BLOCK}
        assert host.vm().counters.reported_bytes == BLOCK
        for _ in range(3):  # the daemon is awake again
            still_clock.jump(0.1)
            await wait_all_tasks_blocked()
        await guest.report((8 * MIB, BLOCK))
        assert guest.ram.resident_in(8 * MIB, BLOCK) == 0


@pytest.mark.parametrize("queue", [Queue.INFLATE, Queue.REPORTING])
@pytest.mark.parametrize("requests", [1, 3, 12])
async def test_late_memory_is_counted_once_as_given_away(
    tmp_path: Path, still_clock: MockClock, queue: Queue, requests: int
) -> None:
    """Even if it was given away many times before it is answered."""
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await wait_all_tasks_blocked()
        ring = guest.rings[queue]
        for number in range(requests):
            address = 8 * MIB + number * MIB
            fill(guest.ram, address, MIB)
            if queue is Queue.INFLATE:  # and a page that does not exist
                first = address // PAGE
                ring.add([guest.pfns([*range(first, first + 256, 2), 1 << 30])])
            else:
                ring.add([(address, MIB // 2, True), ((1 << 42) + 2 * number * PAGE, PAGE, True)])
        still_clock.jump(0.7)
        for _ in range(3):
            ring.kick()
            await guest.start(bases=await guest.stop())
        await wait_all_tasks_blocked()
        assert ring.used_index == requests
        counters = host.vm().counters
        given = counters.inflated_bytes + counters.reported_bytes
        assert given == requests * MIB // 2
        assert counters.freed_bytes == 0
        assert counters.requests[queue] == requests
        assert sum(refused(host.vm()).values()) == given + requests * PAGE


@pytest.mark.parametrize("seconds", [0.1, 30.0])
async def test_what_waited_on_a_disabled_ring(
    tmp_path: Path, autojump_clock: MockClock, seconds: float
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        fill(guest.ram, 8 * MIB, BLOCK)
        await guest.report((16 * MIB, BLOCK))
        await trio.sleep(10)
        await guest.front_end.enable_rings(False)
        ring = guest.rings[Queue.REPORTING]
        ring.add([(8 * MIB, BLOCK, True)])
        ring.kick()
        await trio.sleep(seconds)
        await guest.front_end.enable_rings(True)
        await ring.wait_used()
        late = seconds > LIMIT
        assert guest.ram.resident_in(8 * MIB, BLOCK) == (BLOCK if late else 0)
        assert refused(host.vm()) == ({"late": BLOCK} if late else {})

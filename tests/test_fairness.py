"""No VM can starve another: steps of bounded work, one place a guest, one thread a guest."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from protocol.virtio_balloon import Queue
from protocol.virtio_ring import DESCRIPTOR
from tests.end_to_end import BLOCK, MIB, PAGE, by_hand, eventually, refused, serving
from tests.test_decode import Memory, pfns
from tests.test_taking_rings_back import Gate, gate  # noqa: F401
from vhost_balloon.decode import (
    STEP_BUFFERS,
    STEP_PFNS,
    STEP_RANGES,
    merged,
    page_numbers,
    pages,
    reported,
)
from vhost_balloon.deflate_processor import MAX_DEFLATED_BYTES
from vhost_balloon.simulator import GuestRam
from vhost_balloon.turn import Turn
from vhost_balloon.virtqueue import WALK_STEP, Buffer, Virtqueue

GIB = 1 << 30
LONGEST = 32768
"""The largest queue size, and so the longest chain."""


# Steps


def test_a_step_reads_few_buffers_and_few_page_numbers() -> None:
    memory = Memory(pfns(*range(0, 16 * STEP_PFNS, 2), *range(100 * STEP_PFNS)))
    scattered = Buffer(0, 32 * STEP_PFNS, False)
    run = Buffer(32 * STEP_PFNS, 400 * STEP_PFNS, False)
    small = [Buffer(4 * number, 4, False) for number in range(1000)]
    steps = 0
    for step in page_numbers([*small, scattered, run, *small], memory.read):
        assert not (step.numbers and step.runs)
        assert len(step.numbers) <= STEP_PFNS
        assert len(step.runs) <= STEP_BUFFERS
        assert len(memory.reads) <= STEP_BUFFERS + 1
        memory.reads.clear()
        steps += 1
    assert steps >= 8 + 2000 // STEP_BUFFERS


@pytest.mark.parametrize("distance", [1, 2, -1, -7])
def test_a_step_names_few_ranges_and_all_steps_name_each_page_once(distance: int) -> None:
    first = 0 if distance > 0 else 1 << 20
    numbers = [first + distance * number for number in range(4000)] * 2
    found = []
    for ranges in merged(numbers):
        assert len(ranges) <= STEP_RANGES
        found += ranges
    assert found == sorted(found)
    assert len(found) == (1 if abs(distance) == 1 else 4000)
    assert sum(end - start for start, end in found) == 4000 * PAGE


def test_refusals_come_step_by_step_too() -> None:
    buffers = [Buffer(0, 1, False)] * LONGEST
    steps = list(pages(buffers, Memory(b"").read))
    assert max(len(named.refusals) for named in steps) <= STEP_BUFFERS
    assert sum(len(named.refusals) for named in steps) == LONGEST
    steps = list(reported(buffers))
    assert max(len(named.refusals) for named in steps) <= STEP_RANGES
    assert sum(len(named.refusals) for named in steps) == LONGEST


@pytest.mark.parametrize("indirect", [False, True])
def test_a_long_chain_is_walked_in_steps_and_may_be_left(indirect: bool) -> None:
    size = 1024
    table = bytearray(
        b"".join(DESCRIPTOR.pack(n, 1, int(n < size - 1), (n + 1) % size) for n in range(size))
    )
    copy = bytes(table)
    if indirect:
        DESCRIPTOR.pack_into(table, 0, 0, len(copy), 4, 0)
    available = bytearray(struct.pack("<HHH", 0, 1, 0) + bytes(2 * size))
    queue = Virtqueue(
        size,
        memoryview(table),
        memoryview(available),
        memoryview(bytearray(4 + 8 * size)),
        0,
        lambda address, length: copy,
    )
    steps = queue.popping()
    assert [next(steps) for _ in range(3)] == [None] * 3
    del steps
    assert (queue.base, queue.pending()) == (0, 1)
    *rests, chain = queue.popping()
    assert rests == [None] * (size // WALK_STEP - (0 if chain is None else 1))
    assert chain is not None
    assert [buffer.address for buffer in chain.buffers] == list(range(size))


@pytest.mark.parametrize("queue", [Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING, Queue.STATS])
async def test_others_have_their_turn_while_the_longest_chain_is_served(
    tmp_path: Path, still_clock: MockClock, queue: Queue
) -> None:
    ram = GuestRam.create(64 * MIB, driver_area=16 * MIB)
    async with (
        serving(tmp_path) as host,
        by_hand(host.path(), ram, queue_size=LONGEST) as guest,
        trio.open_nursery() as nursery,
    ):
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        nursery.start_soon(other)
        ring = guest.rings[queue]
        address, length, writable = guest.pfns([16 * MIB // PAGE])
        if queue is Queue.REPORTING:
            address, length, writable = 16 * MIB, PAGE, True
        ring.add([(address, length, writable)] * LONGEST, indirect=True)
        if queue is Queue.STATS:  # the device holds the last one
            ring.add([(address, length, writable)])
        before = turns
        ring.kick()
        await ring.wait_used()
        steps = LONGEST // WALK_STEP
        if queue is Queue.DEFLATE:
            steps += MAX_DEFLATED_BYTES // PAGE // STEP_BUFFERS - 1
        elif queue is not Queue.STATS:
            steps += LONGEST // max(STEP_BUFFERS, STEP_RANGES) - 1
        assert turns - before >= steps
        nursery.cancel_scope.cancel()


async def test_16384_scattered_pages_in_a_request_are_all_discarded(
    tmp_path: Path, still_clock: MockClock
) -> None:
    ram = GuestRam.create(256 * MIB, driver_area=4 * MIB)
    async with serving(tmp_path) as host, by_hand(host.path(), ram) as guest:
        await guest.inflate(range(8 * MIB // PAGE, 8 * MIB // PAGE + 2 * 16384, 2))
        assert host.vm().counters.inflated_bytes == 16384 * PAGE
        assert not refused(host.vm())


# One place in the round


async def test_all_tasks_of_a_guest_share_one_place_in_the_round() -> None:
    steps = {"flood": [0] * 5, "quiet": [0]}
    async with trio.open_nursery() as nursery:

        async def work(guest: str, task: int, turn: Turn) -> None:
            while sum(steps["flood"]) < 1000:
                steps[guest][task] += 1
                await turn.others()

        for guest, tasks in steps.items():
            turn = Turn()
            for task in range(len(tasks)):
                nursery.start_soon(work, guest, task, turn)
    assert sum(steps["flood"]) - sum(steps["quiet"]) <= 10
    assert max(steps["flood"]) - min(steps["flood"]) <= 2


async def test_a_guest_discards_in_one_thread_and_another_one_beside_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gate: Gate,  # noqa: F811
) -> None:
    monkeypatch.setattr("vhost_balloon.processors.DISCARDING", trio.CapacityLimiter(2))
    async with (
        serving(tmp_path, names=("flood", "quiet")) as host,
        by_hand(host.path("flood"), GIB) as flood,
        by_hand(host.path("quiet"), GIB) as quiet,
    ):
        with gate:
            flood.rings[Queue.REPORTING].add([(512 * MIB, BLOCK, True)])
            flood.rings[Queue.REPORTING].kick()
            flood.rings[Queue.INFLATE].add([flood.pfns(range(65536, 65536 + 1024))])
            flood.rings[Queue.INFLATE].kick()
            await eventually(lambda: gate.waiting == 1)
            await trio.testing.wait_all_tasks_blocked()
            assert gate.waiting == 1
            quiet.rings[Queue.REPORTING].add([(512 * MIB, BLOCK, True)])
            quiet.rings[Queue.REPORTING].kick()
            await eventually(lambda: gate.waiting == 2)
            for _ in range(3):
                gate.let_one_pass()
            await quiet.rings[Queue.REPORTING].wait_used()
            await flood.rings[Queue.INFLATE].wait_used()
            await flood.rings[Queue.REPORTING].wait_used()

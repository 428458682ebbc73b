"""The work between two turns of other tasks is bounded, and a flood hurts only its own process."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from protocol.virtio_balloon import Queue
from protocol.virtio_ring import DESCRIPTOR
from tests.benchmarks import fairness
from tests.support.end_to_end import BLOCK, MIB, PAGE, by_hand, fill, refused, serving
from vhost_balloon.memory.discard import PunchResult, punch
from vhost_balloon.memory.region import Part
from vhost_balloon.queues.decode import (
    GATHERED_NUMBERS,
    READ_PFNS,
    SLICE_BUFFERS,
    SLICE_BYTES,
    SLICE_NUMBERS,
    Requests,
    Slice,
    pages,
)
from vhost_balloon.queues.decode import reported as reports
from vhost_balloon.queues.processor import yield_to_others
from vhost_balloon.queues.virtqueue import WALK_STEP, Buffer, ReadMemory, Virtqueue
from vhost_balloon.simulator.memory import GuestRam

LONGEST = 32768
"""The largest queue size, and so the longest chain."""


def scattered(address: int, length: int) -> bytes:
    """Guest memory of which each word is a page number; no two are adjacent."""
    return words(address, length, 2)


def in_a_row(address: int, length: int) -> bytes:
    return words(address, length, 1)


def words(address: int, length: int, step: int) -> bytes:
    """Bytes of memory of which each word is step more than the one before."""
    first, end = address // 4, (address + length + 3) // 4
    content = struct.pack(f"<{end - first}I", *range(first * step, end * step, step))
    return content[address % 4 :][:length]


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("read", [scattered, in_a_row])
@pytest.mark.parametrize(
    "requests",
    [
        [[Buffer(0, 1 << 20, False)]],
        [[Buffer(0, 1 << 20, False)] * 3],
        [[Buffer(0, 4, False)] * LONGEST],
        [[Buffer(0, 1, False)] * LONGEST],
        [[Buffer(0, 1024, False)]] * 1000,
        [[Buffer(0, 7, False)]] * 1000,
        [[Buffer(0, 3, False), Buffer(0, 4, True), Buffer(0, 0, False)] * 5000],
        [[Buffer(0, 3, False)] + [Buffer(0, 4, True)] * 20] * 250,
    ],
    ids=["one", "large", "pages", "bytes", "usual", "odd", "nonsense", "refused"],
)
def test_a_slice_is_bounded(read: object, requests: list[list[Buffer]], gathered: bool) -> None:
    most = GATHERED_NUMBERS if gathered else SLICE_NUMBERS
    asked: list[int] = []

    def reading(address: int, length: int) -> bytes:
        asked.append(length)
        data: bytes = read(address, length)  # type: ignore[operator]
        return data

    total = 0
    for named in pages(requests, reading, gathered=gathered):
        assert len(named.ranges) < most + READ_PFNS
        assert len(named.refusals) <= SLICE_BUFFERS + 1  # and the tail of what was read before
        assert named.size < SLICE_BYTES + READ_PFNS * PAGE
        assert len(asked) <= SLICE_BUFFERS + SLICE_BYTES // (READ_PFNS * PAGE)
        assert max(asked, default=0) <= 4 * READ_PFNS
        asked.clear()
        total += named.size
    sizes = [sum(length for _, length, writable in r if not writable) for r in requests]
    assert total == sum(size // 4 * PAGE for size in sizes)


def test_a_slice_of_a_report_is_bounded() -> None:
    buffers = [Buffer(2 * PAGE * number, PAGE, bool(number % 3)) for number in range(LONGEST)]
    slices = list(reports([buffers]))
    assert max(len(named.ranges) + len(named.refusals) for named in slices) <= SLICE_BUFFERS
    assert sum(len(named.ranges) + len(named.refusals) for named in slices) == LONGEST


@pytest.mark.parametrize("indirect", [False, True])
def test_a_long_chain_is_walked_in_steps_and_may_be_left(indirect: bool) -> None:
    size = 4 * WALK_STEP
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
    assert rests == [None] * 3
    assert chain is not None
    assert [buffer.address for buffer in chain.buffers] == list(range(size))


@pytest.mark.parametrize("queue", [Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING, Queue.STATS])
async def test_others_have_their_turn_while_the_longest_chain_is_served(
    tmp_path: Path, still_clock: MockClock, nursery: trio.Nursery, queue: Queue
) -> None:
    ram = GuestRam.create(64 * MIB, driver_area=16 * MIB)
    async with serving(tmp_path) as host, by_hand(host.path(), ram, queue_size=LONGEST) as guest:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        ring = guest.rings[queue]
        buffer = guest.pfns([16 * MIB // PAGE])
        if queue is Queue.REPORTING:
            buffer = 16 * MIB, PAGE, True
        ring.add([buffer] * LONGEST, indirect=True)
        if queue is Queue.STATS:  # the device holds the last one
            ring.add([buffer])
        nursery.start_soon(other)
        ring.kick()
        await ring.wait_used()
        steps = LONGEST // WALK_STEP - 1
        if queue is not Queue.STATS:
            steps += LONGEST // SLICE_BUFFERS - 1
        assert turns >= steps
        nursery.cancel_scope.cancel()


async def test_others_have_their_turn_between_decoding_many_pages_and_discarding_them(
    tmp_path: Path, still_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def decoding(requests: Requests, read: ReadMemory, *, gathered: bool) -> Iterator[Slice]:
        for named in pages(requests, read, gathered=gathered):
            found.append("slice")
            yield named

    def punching(piece: Part) -> PunchResult:
        found.append("piece")
        return punch(piece)

    async def yielding() -> None:
        found.append("turn")
        await yield_to_others()

    for name, value in (("pages", decoding), ("punch", punching), ("yield_to_others", yielding)):
        monkeypatch.setattr(f"vhost_balloon.queues.discarding.{name}", value)
    async with serving(tmp_path) as host, by_hand(host.path(), 64 * MIB) as guest:
        await guest.inflate(range(4096, 4096 + 2 * 1024, 2))
    assert found == ["slice", "turn", "piece", "turn", "piece"]


async def test_16384_scattered_pages_in_a_request_are_all_discarded(
    tmp_path: Path, still_clock: MockClock
) -> None:
    ram = GuestRam.create(256 * MIB, driver_area=4 * MIB)
    async with serving(tmp_path) as host, by_hand(host.path(), ram) as guest:
        await guest.inflate(range(8 * MIB // PAGE, 8 * MIB // PAGE + 2 * 16384, 2))
        assert host.vm().counters.inflated_bytes == 16384 * PAGE
        assert not refused(host.vm())


async def test_a_request_of_one_piece_is_answered_in_one_go(
    tmp_path: Path, still_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def others() -> None:
        raise AssertionError("another task had a turn")

    for module in ("processor", "discarding", "deflate"):
        monkeypatch.setattr(f"vhost_balloon.queues.{module}.yield_to_others", others)
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        fill(guest.ram, 8 * MIB, 2 * BLOCK)
        await guest.report((8 * MIB, 2 * BLOCK))
        await guest.inflate(range(4096, 4096 + 256))
        await guest.rings[Queue.DEFLATE].submit([guest.pfns(range(4096, 4096 + 512, 2))])
        assert host.vm().counters.freed_bytes == 2 * BLOCK


@pytest.mark.timeout(120)
def test_a_vm_beside_a_flood_is_served() -> None:
    """The benchmark measures how soon."""
    found = fairness.run(1, 2.0, (fairness.ALONE, fairness.BESIDE))
    for rounds in found.values():
        assert len(rounds[0]["report"]) >= 3
    assert fairness.rows(found)[0].figures()["beside of alone"].median > 0

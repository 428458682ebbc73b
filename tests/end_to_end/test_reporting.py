"""Free page reporting, end to end: exactly which pages are freed, and which never are."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from protocol.vhost_user import Request
from protocol.vhost_user_payloads import build_u64
from protocol.virtio_balloon import BalloonFeature, Queue
from protocol.virtio_ring import DESCRIPTOR, DescriptorFlag
from tests.support.end_to_end import (
    BLOCK,
    LINUX,
    MIB,
    PAGE,
    LogLines,
    by_hand,
    eventually,
    fill,
    is_filled,
    refused,
    ring_pages,
    serving,
)
from vhost_balloon.simulator.driver import POISON_FIELD
from vhost_balloon.simulator.guest import running_guest
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.options import DriverOptions

POISON = int(BalloonFeature.PAGE_POISON)


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
async def test_32_descending_adjacent_blocks_are_freed_exactly(
    tmp_path: Path, still_clock: MockClock, indirect: bool
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), 192 * MIB) as guest:
        start, size = 32 * MIB, 128 * MIB
        fill(guest.ram, start - BLOCK, size + 2 * BLOCK)
        before = guest.ram.resident()
        blocks = [(start + size - BLOCK * (n + 1), BLOCK) for n in range(32)]
        used = await guest.report(*blocks, indirect=indirect)
        counters = host.vm().counters
        assert used.length == 0
        assert before - guest.ram.resident() == counters.freed_bytes == size
        assert counters.reported_bytes == size
        assert guest.ram.resident_in(start, size) == 0
        assert is_filled(guest.ram, start - BLOCK, BLOCK)
        assert is_filled(guest.ram, start + size, BLOCK)
        assert not refused(host.vm())
        assert sum(counters.discard_seconds.counts) == 16, "one range, in pieces of 8 MiB"
        assert counters.requests == {Queue.REPORTING: 1}
        assert host.vm().statistics().resident == guest.ram.resident()


async def test_a_chain_may_go_on_in_an_indirect_table(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        fill(guest.ram, 8 * MIB, 3 * BLOCK)
        ring, write = guest.rings[Queue.REPORTING], int(DescriptorFlag.WRITE)
        table = DESCRIPTOR.pack(12 * MIB, BLOCK, write | DescriptorFlag.NEXT, 1)
        table += DESCRIPTOR.pack(16 * MIB, BLOCK, write, 0)
        address, length, _ = guest.buffer(table)
        ring.write_descriptor(0, 8 * MIB, BLOCK, write | DescriptorFlag.NEXT, 1)
        ring.write_descriptor(1, address, length, DescriptorFlag.INDIRECT)
        ring.publish(0)
        ring.kick()
        await ring.wait_used()
        assert host.vm().counters.freed_bytes == 3 * BLOCK


async def test_regions_with_holes_are_freed_each_in_its_file(
    tmp_path: Path, still_clock: MockClock
) -> None:
    ram = GuestRam.around_pci_hole(48 * MIB, hole_start=32 * MIB, hole_end=64 * MIB)
    ram.add(16 * MIB, 256 * MIB)
    ram.add(16 * MIB, 272 * MIB)  # adjacent in the guest, another file on the host
    async with serving(tmp_path) as host, by_hand(host.path(), ram) as guest:
        for region in ram.regions:
            first = max(region.start, BLOCK)
            fill(ram, first, region.end - first)
        before = ram.resident()
        blocks = [(288 * MIB - n * BLOCK, BLOCK) for n in range(1, 7)]  # across the boundary
        blocks += [(72 * MIB, BLOCK), (28 * MIB, BLOCK)]
        await guest.report(*blocks, indirect=True)
        assert before - ram.resident() == host.vm().counters.freed_bytes == len(blocks) * BLOCK
        assert not any(ram.resident_in(*block) for block in blocks)
        kept = [(68 * MIB, BLOCK), (76 * MIB, BLOCK), (24 * MIB, BLOCK), (260 * MIB, BLOCK)]
        assert all(is_filled(ram, *block) for block in kept)
        assert not refused(host.vm())


@pytest.mark.parametrize(
    ("address", "length", "freed", "reasons"),
    [
        pytest.param(8 * MIB + 100, BLOCK, BLOCK - PAGE, {"unaligned": PAGE}, id="unaligned"),
        pytest.param(8 * MIB + 1, 100, 0, {"unaligned": 100}, id="part of a page"),
        pytest.param(8 * MIB + 1, PAGE, 0, {"unaligned": PAGE}, id="parts of two pages"),
        pytest.param(
            12 * MIB, 2 * BLOCK, BLOCK, {"outside-memory": BLOCK}, id="crosses a region's end"
        ),
        pytest.param(
            28 * MIB, 2 * BLOCK, BLOCK, {"outside-memory": BLOCK}, id="crosses a region's start"
        ),
        pytest.param(20 * MIB, BLOCK, 0, {"outside-memory": BLOCK}, id="in a hole"),
        pytest.param(12 * MIB, 24 * MIB, 2 * BLOCK, {"outside-memory": 16 * MIB}, id="over a hole"),
        pytest.param((1 << 64) - PAGE, 2 * PAGE, 0, {"outside-memory": 2 * PAGE}, id="wraps 2^64"),
        pytest.param(
            8 * MIB,
            (1 << 32) - 1,
            24 * MIB,
            {"outside-memory": (1 << 32) - 1 - 24 * MIB},
            id="length 2^32-1",
        ),
        pytest.param(8 * MIB, 0, 0, {}, id="length 0"),
    ],
)
@pytest.mark.parametrize("position", ["first", "last"])
async def test_what_is_wrong_with_a_range_is_counted_and_the_rest_is_done(
    tmp_path: Path,
    still_clock: MockClock,
    log_lines: LogLines,
    address: int,
    length: int,
    freed: int,
    reasons: dict[str, int],
    position: str,
) -> None:
    ram = GuestRam.create(16 * MIB)
    ram.add(16 * MIB, 32 * MIB)
    async with serving(tmp_path) as host, by_hand(host.path(), ram) as guest:
        fill(ram, BLOCK, 12 * MIB)
        fill(ram, 32 * MIB, 16 * MIB)
        good = (BLOCK, BLOCK)
        ranges = [(address, length), good] if position == "first" else [good, (address, length)]
        used = await guest.report(*ranges)
        assert used.length == 0
        assert host.vm().counters.freed_bytes == freed + BLOCK
        assert ram.resident_in(*good) == 0
        assert refused(host.vm()) == reasons
        assert host.vm().counters.refused_ranges[next(iter(reasons), "empty")] == 1
        assert log_lines.having("vm1", "reporting", *reasons)
        assert not host.vm().counters.ring_errors
        await guest.works(host.vm())


async def test_a_buffer_in_the_wrong_direction_is_kept(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        fill(guest.ram, 8 * MIB, 2 * BLOCK)
        ring = guest.rings[Queue.REPORTING]
        used = await ring.submit([(8 * MIB, BLOCK, False), (12 * MIB, BLOCK, True)])
        assert used.length == 0
        assert is_filled(guest.ram, 8 * MIB, BLOCK)
        assert guest.ram.resident_in(12 * MIB, BLOCK) == 0
        assert refused(host.vm()) == {"direction": BLOCK}


async def test_ring_pages_are_never_discarded(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), 16 * MIB) as guest:
        started = ring_pages(guest.rings[queue] for queue in guest.indexes)
        fill(guest.ram, MIB, 15 * MIB)
        await guest.report((0, 16 * MIB))
        assert refused(host.vm()) == {"ring": len(started) * PAGE}
        left = {page for page in range(4096) if guest.ram.is_resident(page * PAGE)}
        assert left == started
        await guest.works(host.vm())


async def test_pages_of_a_stopped_ring_may_go(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), 16 * MIB) as guest:
        stats = guest.rings[Queue.STATS]
        await guest.front_end.get_vring_base(guest.indexes[Queue.STATS])
        await guest.inflate(page for page in ring_pages([stats]))
        others = ring_pages(guest.rings[q] for q in guest.indexes if q is not Queue.STATS)
        for page in ring_pages([stats]):
            assert guest.ram.is_resident(page * PAGE) == (page in others)


# Poison


@pytest.mark.parametrize(
    ("poison", "negotiated", "dropped"),
    [(None, False, True), (0, True, True), (0xAAAAAAAA, True, False), (0xAAAAAAAA, False, True)],
)
async def test_poison_rules(
    tmp_path: Path, still_clock: MockClock, poison: int | None, negotiated: bool, dropped: bool
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), features=None) as guest:
        if poison is not None:  # before SET_FEATURES, as Linux does
            await guest.front_end.set_config(POISON_FIELD, poison.to_bytes(4, "little"))
        await guest.start(LINUX | (POISON if negotiated else 0))
        fill(guest.ram, 8 * MIB, BLOCK)
        await guest.report((8 * MIB, BLOCK))
        assert guest.ram.resident_in(8 * MIB, BLOCK) == (0 if dropped else BLOCK)
        assert refused(host.vm()) == ({} if dropped else {"poison": BLOCK})
        assert host.vm().counters.reported_bytes == BLOCK
        await guest.works(host.vm())  # inflated pages are freed in any case


@pytest.mark.parametrize("forget", [None, "reset", "status"])
async def test_poison_outlives_stops_and_not_resets(
    tmp_path: Path, still_clock: MockClock, forget: str | None
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), features=None) as guest:
        await guest.front_end.set_config(POISON_FIELD, b"\xaa" * 4)
        await guest.start(LINUX | POISON)
        await guest.stop()
        guest.fresh()  # base 0, as after a wake-up from S3
        if forget == "reset":
            await guest.front_end.tell(Request.RESET_DEVICE)
        elif forget == "status":
            await guest.front_end.tell(Request.SET_STATUS, build_u64(0))
        await guest.start(LINUX | POISON)
        fill(guest.ram, 8 * MIB, BLOCK)
        await guest.report((8 * MIB, BLOCK))
        assert guest.ram.resident_in(8 * MIB, BLOCK) == (0 if forget else BLOCK)


async def test_a_guest_that_poisons_finds_its_poison(tmp_path: Path) -> None:
    options = DriverOptions(poison_value=0xAAAAAAAA, report_delay=None)
    async with serving(tmp_path) as host, running_guest(host.path(), 64 * MIB, options) as guest:
        await guest.touch(32 * MIB)
        await guest.free()
        before = guest.resident()
        assert await guest.driver.report() >= 32 * MIB
        assert guest.resident() == before
        assert guest.ram.read(32 * MIB - PAGE, PAGE) == b"\xaa" * PAGE


# The guest as a whole


@pytest.mark.parametrize("reporting", [True, False])
async def test_memory_falls_by_reporting_alone(tmp_path: Path, reporting: bool) -> None:
    switches = [] if reporting else ["--no-reporting"]
    options = DriverOptions(report_delay=0.01)
    async with (
        serving(tmp_path, *switches) as host,
        running_guest(host.path(), 256 * MIB, options) as guest,
    ):
        assert (Queue.REPORTING in guest.driver.indexes) == reporting
        await guest.touch(160 * MIB)
        await guest.free(150 * MIB)
        if reporting:
            await eventually(lambda: guest.resident() < 20 * MIB)
        else:
            with trio.move_on_after(0.2):
                await eventually(lambda: False)
            assert guest.resident() >= 160 * MIB
        assert await guest.verify() == 0

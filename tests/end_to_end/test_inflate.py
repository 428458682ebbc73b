"""Inflate and deflate, end to end: every page number counts."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from trio.testing import MockClock

from protocol.virtio_balloon import Queue
from tests.support.end_to_end import (
    MIB,
    PAGE,
    ByHand,
    by_hand,
    fill,
    refused,
    serving,
)
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.options import DriverOptions

FIRST = 8 * MIB // PAGE
COUNT = 2048
ACTUAL = slice(4, 8)
QUIET = DriverOptions(report_delay=None)


def pack(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def freed_pages(guest: ByHand) -> set[int]:
    """Which of the COUNT pages from FIRST are gone, relative to FIRST."""
    return {n for n in range(COUNT) if not guest.ram.is_resident((FIRST + n) * PAGE)}


def page(number: int) -> int:
    return FIRST + number


@pytest.mark.parametrize(
    ("buffers", "freed", "reasons"),
    [
        pytest.param([pack(*map(page, range(256)))], range(256), {}, id="ascending"),
        pytest.param([pack(*map(page, range(255, -1, -1)))], range(256), {}, id="descending"),
        pytest.param([pack(*map(page, range(0, 512, 2)))], range(0, 512, 2), {}, id="scattered"),
        pytest.param([pack(*[page(7)] * 256)], [7], {}, id="duplicates"),
        pytest.param(
            [pack(page(0), 1 << 20, page(2), 0xFFFFFFFF)],
            [0, 2],
            {"outside-memory": 2 * PAGE},
            id="outside memory",
        ),
        pytest.param([pack(page(3)) + b"\1\2\3"], [3], {"odd-tail": 3}, id="odd tail"),
        pytest.param([b"\1\2"], [], {"odd-tail": 2}, id="less than a PFN"),
        pytest.param([pack(page(4))[:1], pack(page(4))[1:]], [4], {}, id="cut inside a PFN"),
        pytest.param(
            [bytes([byte]) for byte in pack(*map(page, range(0, 30, 2))) + b"\1"],
            range(0, 30, 2),
            {"odd-tail": 1},
            id="single bytes",
        ),
        pytest.param([b"", pack(page(5))], [5], {}, id="an empty buffer"),
        pytest.param([b""], [], {}, id="nothing but an empty buffer"),
        pytest.param([pack(page(n)) for n in range(40)], range(40), {}, id="many buffers"),
    ],
)
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
async def test_the_pages_named_go_and_no_other(
    tmp_path: Path,
    still_clock: MockClock,
    buffers: Sequence[bytes],
    freed: Sequence[int],
    reasons: dict[str, int],
    indirect: bool,
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        fill(guest.ram, FIRST * PAGE, COUNT * PAGE)
        chain = [guest.buffer(data) for data in buffers]
        used = await guest.rings[Queue.INFLATE].submit(chain, indirect=indirect)
        assert used.length == 0
        assert freed_pages(guest) == set(freed)
        counters = host.vm().counters
        assert counters.freed_bytes == counters.inflated_bytes == len(freed) * PAGE
        assert refused(host.vm()) == reasons
        assert counters.refused_ranges["empty"] == (not any(buffers))
        assert counters.requests == {Queue.INFLATE: 1}
        await guest.works(host.vm())


async def test_a_writable_buffer_holds_no_pfns(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        fill(guest.ram, FIRST * PAGE, COUNT * PAGE)
        address, length, _ = guest.pfns([page(0), page(1)])
        chain = [(address, length, True), guest.pfns([page(2)])]
        await guest.rings[Queue.INFLATE].submit(chain)
        assert freed_pages(guest) == {2}
        assert refused(host.vm()) == {"direction": 8}
        assert guest.ram.read(address, length) == pack(page(0), page(1)), "nothing is written"


@pytest.mark.parametrize("step", [1, 2], ids=["one run", "scattered"])
async def test_a_chain_of_many_thousand_pfns(
    tmp_path: Path, still_clock: MockClock, step: int
) -> None:
    count, first = 20000, 8 * MIB // PAGE
    size = count * step * PAGE
    async with (
        serving(tmp_path) as host,
        by_hand(host.path(), 8 * MIB + size, queue_size=256) as guest,
    ):
        fill(guest.ram, first * PAGE, size)
        numbers = list(range(first, first + count * step, step))
        chain = [guest.pfns(numbers[:17000]), guest.pfns(numbers[17000:])]
        chain += [guest.pfns([number]) for number in numbers[:100]]
        await guest.rings[Queue.INFLATE].submit(chain)
        assert host.vm().counters.freed_bytes == count * PAGE
        assert guest.ram.resident_in(first * PAGE, size) == size - count * PAGE
        assert not refused(host.vm())


async def test_pages_of_all_regions_by_4_kib_numbers(
    tmp_path: Path, still_clock: MockClock
) -> None:
    ram = GuestRam.around_pci_hole(32 * MIB, hole_start=16 * MIB, hole_end=4 << 30)
    async with serving(tmp_path) as host, by_hand(host.path(), ram) as guest:
        pages = [16 * MIB - PAGE, 4 << 30, (4 << 30) + 16 * MIB - PAGE]
        for address in pages:
            fill(ram, address, PAGE)
        await guest.inflate([16 * MIB // PAGE, *(address // PAGE for address in pages)])
        assert not any(ram.is_resident(address) for address in pages)
        assert refused(host.vm()) == {"outside-memory": PAGE}


async def test_deflate_only_acknowledges(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        fill(guest.ram, FIRST * PAGE, COUNT * PAGE)
        before = guest.ram.resident()
        chain = [guest.pfns([page(0), page(1), 1 << 30])]
        used = await guest.rings[Queue.DEFLATE].submit(chain)
        assert used.length == 0
        assert guest.ram.resident() == before
        assert host.vm().counters.deflated_bytes == 2 * PAGE
        assert refused(host.vm()) == {"outside-memory": PAGE}

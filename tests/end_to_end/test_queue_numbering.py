"""Three conventions for numbering optional queues, and inconsistent maps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.virtio_balloon import OPTIONAL_QUEUES, STAT, BalloonFeature, Queue, StatTag
from tests.support.end_to_end import (
    BLOCK,
    LINUX,
    MIB,
    ByHand,
    Host,
    LogLines,
    by_hand,
    fill,
    is_filled,
    refused,
    serving,
)
from vhost_balloon.simulator.options import Numbering
from vhost_balloon.simulator.ring import DriverRing

OPTIONAL = tuple(int(feature) for feature, _ in OPTIONAL_QUEUES)
BASE = LINUX & ~sum(OPTIONAL)
SWITCHES = dict(zip(OPTIONAL, ("--no-stats", "--no-free-page-hint", "--no-reporting"), strict=True))


def subsets(bits: Iterable[int]) -> Iterator[int]:
    bits = tuple(bits)
    for count in range(len(bits) + 1):
        yield from map(sum, combinations(bits, count))


OFFERED_AND_NEGOTIATED = [
    (offered, negotiated)
    for offered in subsets(OPTIONAL)
    for negotiated in subsets(bit for bit in OPTIONAL if bit & offered)
]


async def serves_statistics(host: Host, guest: ByHand) -> None:
    ring = guest.rings[Queue.STATS]
    ring.add([guest.buffer(STAT.pack(StatTag.MEMFREE, 77))])
    ring.kick()
    await wait_all_tasks_blocked(0.001)
    assert host.vm().statistics().stats == {StatTag.MEMFREE: 77}
    assert ring.used_index == 0


async def only_acknowledges_hints(host: Host, guest: ByHand) -> None:
    fill(guest.ram, 8 * MIB, BLOCK)
    used = await guest.rings[Queue.FREE_PAGE].submit([(8 * MIB, BLOCK, True)])
    assert used.length == 0
    assert is_filled(guest.ram, 8 * MIB, BLOCK)


async def frees_reports(host: Host, guest: ByHand) -> None:
    fill(guest.ram, 16 * MIB, BLOCK)
    await guest.report((16 * MIB, BLOCK))
    assert guest.ram.resident_in(16 * MIB, BLOCK) == 0


PROOFS = {
    Queue.STATS: serves_statistics,
    Queue.FREE_PAGE: only_acknowledges_hints,
    Queue.REPORTING: frees_reports,
}


@pytest.mark.parametrize("numbering", Numbering, ids=lambda numbering: numbering.name.lower())
@pytest.mark.parametrize(("offered", "negotiated"), OFFERED_AND_NEGOTIATED)
async def test_each_queue_is_found(
    tmp_path: Path,
    still_clock: MockClock,
    log_lines: LogLines,
    offered: int,
    negotiated: int,
    numbering: Numbering,
) -> None:
    switches = [switch for bit, switch in SWITCHES.items() if not bit & offered]
    async with (
        serving(tmp_path, *switches) as host,
        by_hand(host.path(), features=BASE | negotiated, numbering=numbering) as guest,
    ):
        expected = {index: queue for queue, index in guest.indexes.items()}
        for queue in guest.indexes:
            if queue in PROOFS:
                await PROOFS[queue](host, guest)
        await guest.works(host.vm())
        found = {queue.index: queue.queue for queue in host.vm().statistics().queues}
        assert found == expected
        assert not log_lines.having("warning")
        still_clock.jump(1.5)
        await wait_all_tasks_blocked()
        assert not host.vm().statistics().queue_map_ambiguous


async def test_queues_that_do_not_fit_are_left_unread(
    tmp_path: Path, autojump_clock: MockClock, log_lines: LogLines
) -> None:
    """Negotiate only statistics, but set up two optional rings."""
    async with serving(tmp_path) as host, by_hand(host.path(), features=None) as guest:
        rings = [guest.rings[queue] for queue in (Queue.INFLATE, Queue.DEFLATE)]
        first, second = guest.rings[Queue.STATS], guest.rings[Queue.REPORTING]
        fill(guest.ram, 8 * MIB, BLOCK)
        for ring in (first, second):
            ring.add([(8 * MIB, BLOCK, True)])
        features = BASE | BalloonFeature.STATS_VQ
        await guest.front_end.start_device(
            dict(enumerate([*rings, first, second])), features=features
        )
        await trio.sleep(0.9)
        assert not log_lines.having("warning")
        assert not host.vm().statistics().queue_map_ambiguous
        await trio.sleep(0.2)
        assert host.vm().statistics().queue_map_ambiguous
        assert log_lines.having("warning: vm1", "[0, 1, 2, 3]", "stats", "left unread")
        assert (first.used_index, second.used_index) == (0, 0)
        assert is_filled(guest.ram, 8 * MIB, BLOCK)
        await guest.works(host.vm())
        # The front end corrects it: the statistics ring remains.
        await guest.front_end.get_vring_base(3)
        assert not host.vm().statistics().queue_map_ambiguous
        assert host.vm().statistics().queues[2].queue is Queue.STATS
        await trio.sleep(100)
        assert len(log_lines.having("left unread")) == 1


async def start_one(guest: ByHand, index: int, ring: DriverRing) -> None:
    await guest.front_end.start_ring(index, ring)
    await guest.front_end.enable_rings(True)


@pytest.mark.parametrize("delay", [0.1, 30.0])
async def test_rings_that_come_one_by_one_are_judged_again(
    tmp_path: Path, autojump_clock: MockClock, log_lines: LogLines, delay: float
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), features=None) as guest:
        fill(guest.ram, 16 * MIB, BLOCK)
        reporting = guest.rings[Queue.REPORTING]
        reporting.add([(16 * MIB, BLOCK, True)])
        rings = {0: guest.rings[Queue.INFLATE], 1: guest.rings[Queue.DEFLATE], 4: reporting}
        await guest.front_end.start_device(rings, features=LINUX)
        await trio.sleep(delay)
        assert reporting.used_index == 0
        assert bool(log_lines.having("left unread")) == (delay > 1)
        await start_one(guest, 2, guest.rings[Queue.STATS])
        reporting.call_event = guest.front_end.ports[4].call
        await reporting.wait_used()
        assert not host.vm().statistics().queue_map_ambiguous
        # A request that had to wait this long may be out of date: drivers give up after a second.
        kept = delay > 0.5
        assert guest.ram.resident_in(16 * MIB, BLOCK) == (BLOCK if kept else 0)
        assert refused(host.vm()) == ({"late": BLOCK} if kept else {})
        await frees_reports(host, guest)


async def test_features_are_judged_again_too(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await frees_reports(host, guest)
        await guest.stop()
        guest.fresh()
        await guest.start(BASE | BalloonFeature.PAGE_REPORTING)
        assert guest.indexes[Queue.REPORTING] == 2
        await frees_reports(host, guest)
        assert Queue.STATS not in [queue.queue for queue in host.vm().statistics().queues]


async def test_an_index_that_does_not_exist(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.front_end.set_vring(8, 5, 64)
        await guest.front_end.set_vring(8, 255, 64)
        await guest.works(host.vm())
        assert log_lines.having("vm1: refused SET_VRING_NUM: ring 5 does not exist")
        assert log_lines.having("vm1: refused SET_VRING_NUM: ring 255 does not exist")

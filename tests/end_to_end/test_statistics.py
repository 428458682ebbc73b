"""Guest memory statistics, end to end: when the daemon asks, and what counts as a sample."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.virtio_balloon import STAT, BalloonFeature, Queue, StatTag
from tests.support.end_to_end import (
    LINUX,
    MIB,
    ByHand,
    Host,
    LogLines,
    by_hand,
    eventually,
    refused,
    serving,
)
from vhost_balloon.errors import CommandError
from vhost_balloon.front_end.connection import FrontEndConnection
from vhost_balloon.simulator.guest import running_guest
from vhost_balloon.simulator.options import DriverOptions
from vhost_balloon.simulator.ring import DriverRing

ALL: dict[int, int] = {tag: 1000 + tag for tag in StatTag}
MIGHTY = (1 << 63) - 1


def free(value: int) -> dict[int, int]:
    return {StatTag.MEMFREE: value}


async def give(guest: ByHand, values: dict[int, int]) -> DriverRing:
    """Give the device a buffer of statistics."""
    return await give_bytes(guest, b"".join(STAT.pack(*item) for item in values.items()))


async def give_bytes(guest: ByHand, *parts: bytes) -> DriverRing:
    ring = guest.rings[Queue.STATS]
    ring.add([guest.buffer(part) for part in parts])
    ring.kick()
    await wait_all_tasks_blocked()
    return ring


def seen(host: Host) -> dict[StatTag, int]:
    return dict(host.vm().statistics().stats)


def ask(host: Host) -> None:
    """Request a fresh sample now."""
    connection = host.vm().front_end
    assert isinstance(connection, FrontEndConnection)
    connection._rings.stats.request()


# When


async def test_the_timer_asks(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with serving(tmp_path, "--stats-interval=7") as host, by_hand(host.path()) as guest:
        attached = trio.current_time()
        for number in range(1, 4):
            ring = await give(guest, free(number))
            assert seen(host) == free(number)
            assert host.vm().statistics().stats_age == pytest.approx(0, abs=0.01)
            assert abs(host.vm().statistics().stats_last_update - time.time()) < 60
            assert len(await ring.wait_used()) == 1
            assert trio.current_time() - attached == pytest.approx(7 * number, abs=0.1)
            assert host.vm().statistics().stats_age == pytest.approx(7, abs=0.1)
        assert host.vm().counters.requests == {Queue.STATS: 3}


async def test_without_a_timer_only_on_demand(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        assert host.vm().statistics().stats_age is None
        assert host.vm().statistics().stats_last_update == 0
        ring = await give(guest, free(1))
        await trio.sleep(100)
        assert ring.used_index == 0
        assert seen(host) == free(1), "the driver's first buffer counts"
        assert host.vm().statistics().stats_age == pytest.approx(100, abs=1)
        ask(host)
        await ring.wait_used()
        ask(host)  # the request waits until the guest returns its buffer
        await give(guest, free(2))
        assert (seen(host), ring.used_index) == (free(2), 2)
        await give(guest, free(3))
        await trio.sleep(100)
        assert (seen(host), ring.used_index) == (free(3), 2)


async def test_a_fresh_sample_is_waited_for(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        ring, samples = await give(guest, free(1)), []

        async def wait() -> None:
            samples.append(dict((await host.vm().fresh_stats(5)).stats))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await ring.wait_used()
            await trio.sleep(4)
            assert samples == [], "the old sample is no answer"
            await give(guest, free(2))
        assert samples == [free(2)]
        with pytest.raises(CommandError, match="within 5 s"):
            await host.vm().fresh_stats(5)
        await guest.stop()
        with pytest.raises(CommandError, match="not ready"):
            await host.vm().fresh_stats(5)
    with pytest.raises(CommandError, match="No balloon device"):
        await host.vm().fresh_stats(5)


async def test_a_new_interval_counts_at_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with (
        serving(tmp_path, "--stats-interval=100") as host,
        by_hand(host.path()) as guest,
    ):
        started = trio.current_time()
        ring = await give(guest, free(1))
        host.vm().stats_interval = 5
        await ring.wait_used()
        assert trio.current_time() - started == pytest.approx(5, abs=0.1)
        await give(guest, free(2))
        host.vm().stats_interval = 0
        await trio.sleep(50)
        assert ring.used_index == 1


async def test_without_the_queue_nobody_is_asked(
    tmp_path: Path, autojump_clock: MockClock, log_lines: LogLines
) -> None:
    features = LINUX & ~int(BalloonFeature.STATS_VQ)
    async with (
        serving(tmp_path, "--stats-interval=1") as host,
        by_hand(host.path(), features=features) as guest,
    ):
        await trio.sleep(10)
        assert seen(host) == {}
        assert not log_lines.having("warning")
        assert Queue.STATS not in guest.indexes
        await guest.works(host.vm())


# What


@pytest.mark.parametrize(
    ("parts", "values", "reasons"),
    [
        pytest.param([STAT.pack(*item) for item in ALL.items()], ALL, {}, id="16 tags, 16 buffers"),
        pytest.param([b"".join(STAT.pack(*i) for i in ALL.items())], ALL, {}, id="16 tags"),
        pytest.param(
            [STAT.pack(16, 1) + STAT.pack(0, 7) + STAT.pack(65535, 1)],
            {StatTag.SWAP_IN: 7},
            {},
            id="unknown tags",
        ),
        pytest.param([STAT.pack(4, MIGHTY)], free(MIGHTY), {}, id="the largest value"),
        pytest.param([STAT.pack(4, 5), STAT.pack(3, MIGHTY + 1)], free(5), {}, id="no value"),
        pytest.param([STAT.pack(4, 5) + b"\0" * 7], free(5), {"odd-tail": 7}, id="odd length"),
        pytest.param([STAT.pack(4, 5)[:3], STAT.pack(4, 5)[3:]], free(5), {}, id="cut in two"),
        pytest.param(
            [bytes([byte]) for i in ALL.items() for byte in STAT.pack(*i)], ALL, {}, id="bytes"
        ),
        pytest.param(
            [b"", STAT.pack(4, 5)[:1], b"", STAT.pack(4, 5)[1:], b""], free(5), {}, id="gaps"
        ),
        pytest.param([STAT.pack(4, 5) + STAT.pack(4, 6)], free(6), {}, id="twice the same tag"),
        pytest.param(
            [STAT.pack(4, 5) * 500], free(5), {"oversized": 904, "odd-tail": 6}, id="oversized"
        ),
    ],
)
async def test_samples(
    tmp_path: Path,
    still_clock: MockClock,
    parts: list[bytes],
    values: dict[int, int],
    reasons: dict[str, int],
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), queue_size=256) as guest:
        ring = await give_bytes(guest, *parts)
        assert seen(host) == values
        assert refused(host.vm()) == reasons
        ask(host)
        assert [used.length for used in await ring.wait_used()] == [0]


UNKNOWN = [
    pytest.param([b""], id="empty"),
    pytest.param([b"\1\2\3"], id="no whole entry"),
    pytest.param([STAT.pack(99, 1)], id="an unknown tag"),
    pytest.param([STAT.pack(tag, 2 * MIGHTY + 1) for tag in StatTag], id="all ones"),
    pytest.param([b"\xff" * 100], id="all ones, the tags too"),
]


@pytest.mark.parametrize("parts", UNKNOWN)
async def test_an_answer_without_a_value_is_an_answer(
    tmp_path: Path, autojump_clock: MockClock, parts: list[bytes]
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        ring = await give(guest, ALL)
        await trio.sleep(50)
        samples = []

        async def wait() -> None:
            samples.append(await host.vm().fresh_stats(5))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await ring.wait_used()
            await give_bytes(guest, *parts)
        assert dict(samples[0].stats) == seen(host) == {}, "the old values are not shown any more"
        assert samples[0].stats_age == pytest.approx(0, abs=1)
        assert abs(samples[0].stats_last_update - time.time()) < 60


async def test_a_writable_buffer_is_an_answer_without_a_value(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        address, length, _ = guest.buffer(STAT.pack(4, 5))
        guest.rings[Queue.STATS].add([(address, length, True)])
        await give_bytes(guest, b"")
        assert (seen(host), host.vm().statistics().stats_age) == ({}, 0)
        assert refused(host.vm()) == {"direction": 10}
        await give(guest, free(6))
        assert seen(host) == free(6)


async def test_a_tag_that_is_missing_is_unknown(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await give(guest, ALL)
        ask(host)
        await give(guest, free(1))
        assert seen(host) == free(1)


async def test_of_two_buffers_the_older_one_is_given_back(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        ring = await give(guest, free(1))
        assert ring.used_index == 0
        await give(guest, free(2))
        assert (seen(host), ring.used_index) == (free(2), 1)
        assert ring.used_element(0).head == 0
        for number in range(3, 200):
            await give(guest, free(number))
            ring.pop_used()
        assert (seen(host), ring.used_index) == (free(199), 198)


# Stops


async def test_a_stale_buffer_is_no_new_sample(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        ring = await give(guest, free(1))
        updated = host.vm().statistics().stats_last_update
        for number in range(1, 4):
            await trio.sleep(50)
            bases = await guest.stop()
            assert bases[guest.indexes[Queue.STATS]] == number - 1, "the held buffer is not used"
            await trio.sleep(50)
            assert host.vm().statistics().stats_age == pytest.approx(100, abs=1)
            await guest.start(bases=bases)
            assert len(await ring.wait_used()) == 1, "a fresh sample is requested at once"
            assert host.vm().statistics().stats_age == pytest.approx(100, abs=1)
            assert host.vm().statistics().stats_last_update >= updated
            assert seen(host) == free(number)
            await give(guest, free(number + 1))
            assert seen(host) == free(number + 1)
            assert host.vm().statistics().stats_age == pytest.approx(0, abs=1)


async def test_a_new_memory_table_makes_no_new_sample(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        ring = await give(guest, free(1))
        await trio.sleep(50)
        await guest.front_end.set_mem_table()
        await ring.wait_used()
        assert host.vm().statistics().stats_age == pytest.approx(50, abs=1)
        await give(guest, free(2))
        assert seen(host) == free(2)


async def test_a_new_drivers_first_buffer_is_a_sample(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.works(host.vm())
        await give(guest, free(1))
        await guest.stop()
        guest.fresh()
        await guest.start()
        assert seen(host) == {}, "the old driver's sample is gone"
        ring = await give(guest, free(2))
        assert (seen(host), ring.used_index) == (free(2), 0)


async def test_a_broken_ring_keeps_the_buffer(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        ring = await give(guest, free(1))
        ring.publish_index(1000)
        ring.kick()
        await guest.front_end.ports[guest.indexes[Queue.STATS]].err.wait()
        ask(host)
        assert ring.used_index == 0, "nothing is written to a stopped ring"
        bases = await guest.stop()
        assert bases[guest.indexes[Queue.STATS]] == 0


async def test_a_guests_statistics_go_on_through_its_life(tmp_path: Path) -> None:
    options = DriverOptions(report_delay=None)
    async with (
        serving(tmp_path, "--stats-interval=0.02") as host,
        running_guest(host.path(), 64 * MIB, options) as guest,
    ):

        async def follows() -> None:
            await guest.touch(MIB)
            wanted = guest.statistics()
            await eventually(lambda: seen(host).items() == wanted.items())

        await follows()
        assert seen(host)[StatTag.MEMTOT] == 64 * MIB
        await guest.stop()
        await guest.cont()
        await follows()
        await guest.reboot()
        await follows()
        await guest.unload()
        await guest.load()
        await follows()

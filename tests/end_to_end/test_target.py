"""The target, end to end: when the guest is told, and what it may write."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from protocol.vhost_user import Request
from protocol.vhost_user_payloads import CONFIG
from protocol.virtio_balloon import CONFIG_SPACE, BalloonFeature, Queue, StatTag
from tests.support.end_to_end import (
    LINUX,
    MIB,
    PAGE,
    LogLines,
    by_hand,
    serving,
    told,
)
from vhost_balloon.front_end.orders import SAMPLE_PATIENCE
from vhost_balloon.simulator.guest import running_guest
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.options import DriverOptions

ACTUAL = slice(4, 8)
QUIET = DriverOptions(report_delay=None)


def pack(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


# The target


def num_pages(config: bytes) -> int:
    return int(CONFIG_SPACE.unpack(config)[0])


async def test_the_guest_is_told_once_of_each_target(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        vm = host.vm()
        assert await told(guest) == 0
        vm.device().set_target(48 * MIB)
        assert num_pages(await guest.front_end.get_config()) == 16 * MIB // PAGE
        assert await told(guest) == 1
        vm.device().set_target(48 * MIB)
        assert await told(guest) == 1, "nothing changed"
        vm.device().set_target(32 * MIB)
        vm.device().set_target(64 * MIB)
        assert await told(guest) == 3
        vm.device().set_target(1 << 62)
        assert await told(guest) == 3, "more than all memory means all, as before"
        vm.device().set_target(1)
        assert num_pages(await guest.front_end.get_config()) == 64 * MIB // PAGE - 1
        assert await told(guest) == vm.counters.config_changes == 4


@pytest.mark.parametrize("seen", [True, False])
async def test_an_unread_target_is_told_again_after_a_stop(
    tmp_path: Path, still_clock: MockClock, seen: bool
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        host.vm().device().set_target(32 * MIB)
        if seen:
            await guest.front_end.get_config()
        assert await told(guest) == 1
        await guest.start(bases=await guest.stop())
        assert await told(guest) == (1 if seen else 2)


async def test_a_stopped_guest_is_told_when_it_runs_again(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        bases = await guest.stop()
        host.vm().device().set_target(32 * MIB)
        host.vm().device().set_target(16 * MIB)
        assert await told(guest) == 0, "a suspended device says nothing"
        assert num_pages(await guest.front_end.get_config()) == 48 * MIB // PAGE
        await guest.start(bases=bases)
        assert await told(guest) == 0, "the front end has read it meanwhile"
        host.vm().device().set_target(8 * MIB)
        assert await told(guest) == 1


@pytest.fixture
def two_regions() -> GuestRam:
    ram = GuestRam.create(32 * MIB)
    ram.add(32 * MIB, 1 << 32)
    return ram


async def test_an_order_waits_for_a_driver(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), features=None) as guest:
        vm = host.vm()
        vm.device().set_target(24 * MIB)
        assert (vm.statistics().target, vm.statistics().pending) == (24 * MIB, True)
        await guest.start()
        assert num_pages(await guest.front_end.get_config()) == 40 * MIB // PAGE
        assert (vm.statistics().target, vm.statistics().pending) == (24 * MIB, False)
        assert await told(guest) == 1


async def test_an_order_waits_for_a_driver_and_its_first_sample(
    tmp_path: Path, still_clock: MockClock, two_regions: GuestRam
) -> None:
    async with (
        serving(tmp_path) as host,
        by_hand(host.path(), two_regions, features=None) as guest,
    ):
        vm = host.vm()
        vm.device().set_target(24 * MIB)
        assert (vm.statistics().target, vm.statistics().pending) == (24 * MIB, True)
        assert vm.statistics().actual is None
        assert num_pages(await guest.front_end.get_config()) == 0
        await guest.start()
        assert (vm.statistics().target, vm.statistics().pending) == (24 * MIB, True)
        assert await told(guest) == 0
        await guest.rings[Queue.STATS].submit([guest.stats({StatTag.MEMTOT: 60 * MIB})])
        assert num_pages(await guest.front_end.get_config()) == 40 * MIB // PAGE
        assert (vm.statistics().target, vm.statistics().pending) == (24 * MIB, False)
        assert await told(guest) == 1


async def test_an_order_waits_two_seconds_for_a_guest_that_gives_no_sample(
    tmp_path: Path, still_clock: MockClock, two_regions: GuestRam
) -> None:
    async with (
        serving(tmp_path) as host,
        by_hand(host.path(), two_regions, features=None) as guest,
    ):
        host.vm().device().set_target(24 * MIB)
        await guest.start()
        assert await told(guest) == 0
        still_clock.jump(SAMPLE_PATIENCE)
        assert await told(guest) == 1
        assert num_pages(await guest.front_end.get_config()) == 40 * MIB // PAGE


async def test_an_order_does_not_wait_for_a_guest_without_statistics(
    tmp_path: Path, still_clock: MockClock, two_regions: GuestRam
) -> None:
    features = LINUX & ~int(BalloonFeature.STATS_VQ)
    async with (
        serving(tmp_path) as host,
        by_hand(host.path(), two_regions, features=None) as guest,
    ):
        host.vm().device().set_target(24 * MIB)
        await guest.start(features)
        assert await told(guest) == 1
        assert num_pages(await guest.front_end.get_config()) == 40 * MIB // PAGE


async def test_a_plug_and_an_unplug_move_actual_and_never_the_balloon(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        host.vm().device().set_target(48 * MIB)
        await guest.front_end.get_config()
        dimm = guest.ram.add(16 * MIB, 1 << 32)
        await guest.front_end.add_region(dimm)
        assert num_pages(await guest.front_end.get_config()) == 16 * MIB // PAGE
        statistics = host.vm().statistics()
        assert (statistics.target, statistics.actual) == (64 * MIB, 80 * MIB)
        await guest.front_end.remove_region(dimm)
        assert num_pages(await guest.front_end.get_config()) == 16 * MIB // PAGE
        assert host.vm().statistics().target == 48 * MIB
        assert await told(guest) == 1


async def test_hot_plug_changes_what_a_guest_with_a_balloon_has(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        seen: list[int | None] = []
        host.vm().add_listener(lambda vm: seen.append(vm.statistics().actual))
        await guest.front_end.set_config(ACTUAL, (4096).to_bytes(4, "little"))
        await guest.front_end.add_region(guest.ram.add(16 * MIB, 1 << 32))
        assert seen == [48 * MIB, 64 * MIB]


async def test_hot_plug_without_a_target_changes_nothing(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.front_end.add_region(guest.ram.add(16 * MIB, 1 << 32))
        assert num_pages(await guest.front_end.get_config()) == 0
        assert await told(guest) == 0
        assert host.vm().statistics().target == 80 * MIB


async def test_what_the_guest_may_write(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        front_end, changes = guest.front_end, []
        host.vm().add_listener(lambda vm: changes.append(vm.statistics().balloon))
        host.vm().device().set_target(48 * MIB)
        config = [9, 512, 77, 0xAA]
        await front_end.set_config(slice(0, 16), CONFIG_SPACE.pack(*config))
        expected = (16 * MIB // PAGE, 512, 0, 0xAA)
        assert CONFIG_SPACE.unpack(await front_end.get_config()) == expected
        assert host.vm().statistics().actual == 64 * MIB - 512 * PAGE
        await front_end.set_config(ACTUAL, (512).to_bytes(4, "little"))
        assert changes == [512 * PAGE], "told once: the second write changed nothing"
        # Flags 1 is migration: then all fields are the writer's.
        payload = CONFIG.pack(0, 16, 1) + CONFIG_SPACE.pack(*config)
        await front_end.command(Request.SET_CONFIG, payload)
        assert CONFIG_SPACE.unpack(await front_end.get_config()) == tuple(config)
        assert host.vm().statistics().target == 64 * MIB - 9 * PAGE


async def test_parts_of_the_config_space(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        host.vm().device().set_target(48 * MIB)
        part = CONFIG.pack(4, 4, 0) + pack(0x11223344)
        await guest.front_end.command(Request.SET_CONFIG, part)
        reply = await guest.front_end.call(Request.GET_CONFIG, CONFIG.pack(2, 6, 0) + bytes(6))
        assert reply == CONFIG.pack(2, 6, 0) + b"\0\0\x44\x33\x22\x11"


# The guest as a whole


async def test_a_guest_goes_to_its_target_and_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as host, running_guest(host.path(), 256 * MIB, QUIET) as guest:
        await guest.touch(200 * MIB)
        await guest.free(180 * MIB)
        vm = host.vm()
        vm.device().set_target(64 * MIB)
        with trio.fail_after(20):
            await guest.driver.wait_balloon(192 * MIB // PAGE)
        assert vm.statistics().actual == 64 * MIB
        assert guest.resident() < 66 * MIB
        vm.device().set_target(160 * MIB)
        with trio.fail_after(20):
            await guest.driver.wait_balloon(96 * MIB // PAGE)
        assert (vm.statistics().actual, vm.statistics().balloon) == (160 * MIB, 96 * MIB)
        assert (vm.counters.inflated_bytes, vm.counters.deflated_bytes) == (192 * MIB, 96 * MIB)
        assert vm.counters.config_changes == 2
        assert await guest.verify() == 0


async def test_deflation_when_the_guest_needs_its_memory(tmp_path: Path) -> None:
    async with serving(tmp_path) as host, running_guest(host.path(), 64 * MIB, QUIET) as guest:
        host.vm().device().set_target(16 * MIB)
        with trio.fail_after(20):
            await guest.driver.wait_balloon(48 * MIB // PAGE)
        await guest.driver.running.wait()
        await guest.touch(20 * MIB)
        assert host.vm().counters.deflated_bytes >= 4 * MIB
        assert await guest.verify() == 0


@pytest.mark.parametrize("switch", ["--no-deflate-on-oom", "--no-must-tell-host"])
async def test_feature_switches_take_bits_away(tmp_path: Path, switch: str) -> None:
    bit = BalloonFeature[switch.removeprefix("--no-").upper().replace("-", "_")]
    async with serving(tmp_path, switch) as host, by_hand(host.path(), features=None) as guest:
        assert not guest.front_end.features & bit
        assert guest.front_end.features & LINUX == LINUX & ~int(bit)


async def test_unknown_pages_are_logged_by_the_vms_name(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.inflate([1 << 30])
        assert log_lines.having("warning: vm1: inflate: not discarded: outside-memory")

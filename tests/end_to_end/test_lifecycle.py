"""The life of machines, drivers and front ends, end to end."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from protocol.vhost_user import Request
from protocol.virtio_balloon import Queue
from tests.support.end_to_end import (
    BLOCK,
    MIB,
    PAGE,
    by_hand,
    fill,
    open_fds,
    serving,
    to_target,
)
from vhost_balloon.simulator.front_end import QEMU_PROTOCOL_FEATURES, FrontEnd
from vhost_balloon.simulator.guest import SimulatedGuest, running_guest
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.options import DriverOptions

QUIET = DriverOptions(report_delay=None)
TARGET = 32 * MIB
PAGES = 32 * MIB // PAGE


# Stop, cont, reboot, reload


async def test_stop_and_cont_change_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as host, running_guest(host.path(), 64 * MIB, QUIET) as guest:
        await to_target(host.vm(), guest, TARGET)
        vm = host.vm()
        assert vm.statistics().driver_ready
        bases = await guest.stop()
        assert bases[0] == PAGES // 256
        assert not vm.statistics().driver_ready
        assert vm.statistics().queues == ()
        assert vm.statistics().actual == TARGET
        await guest.cont()
        assert vm.statistics().actual == TARGET
        assert [queue.queue for queue in vm.statistics().queues] == [
            Queue.INFLATE,
            Queue.DEFLATE,
            Queue.STATS,
            Queue.FREE_PAGE,
            Queue.REPORTING,
        ]
        vm.device().set_target(48 * MIB)
        with trio.fail_after(10):
            await guest.driver.wait_balloon(16 * MIB // PAGE)
        await guest.touch(30 * MIB)
        assert await guest.verify() == 0


async def test_a_reboot_empties_the_balloon_and_keeps_the_target(tmp_path: Path) -> None:
    async with serving(tmp_path) as host, running_guest(host.path(), 64 * MIB, QUIET) as guest:
        await to_target(host.vm(), guest, TARGET)
        seen: list[int | None] = []
        host.vm().add_listener(lambda vm: seen.append(vm.statistics().actual))
        await guest.reboot()
        assert seen[0] == 64 * MIB
        assert host.vm().statistics().target == TARGET
        with trio.fail_after(10):
            await guest.driver.wait_balloon(PAGES)
        assert seen[-1] == host.vm().statistics().actual == TARGET


async def test_a_reboot_after_a_stop_is_a_new_driver_too(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.works(host.vm())
        await guest.front_end.set_config(slice(4, 8), (512).to_bytes(4, "little"))
        for _ in range(2):  # the second time without requests in between
            await guest.start(bases=await guest.stop())
            assert host.vm().statistics().balloon == 512 * PAGE
        await guest.stop()
        guest.fresh()
        await guest.start()
        assert host.vm().statistics().balloon == 0
        await guest.works(host.vm())


@pytest.mark.parametrize("how", ["reset", "status"])
async def test_a_device_reset_stops_all_rings(
    tmp_path: Path, still_clock: MockClock, how: str
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.works(host.vm())
        await guest.front_end.set_config(slice(4, 8), (512).to_bytes(4, "little"))
        host.vm().device().set_target(TARGET)
        if how == "reset":
            await guest.front_end.command(Request.RESET_DEVICE)
        else:
            await guest.front_end.set_u64(Request.SET_STATUS, 0)
        await guest.front_end.get_config()
        now = host.vm().statistics()
        assert (now.balloon, now.target, now.queues) == (0, TARGET, ())
        guest.fresh()
        await guest.start()
        await guest.works(host.vm())


async def test_unload_gives_all_back_and_reload_goes_on(tmp_path: Path) -> None:
    async with serving(tmp_path) as host, running_guest(host.path(), 64 * MIB, QUIET) as guest:
        await to_target(host.vm(), guest, TARGET)
        await guest.unload()
        now = host.vm().statistics()
        assert (now.actual, now.driver_ready, now.target) == (64 * MIB, False, TARGET)
        await guest.load()
        with trio.fail_after(10):
            await guest.driver.wait_balloon(PAGES)
        assert host.vm().statistics().actual == TARGET


async def test_ring_indexes_wrap(tmp_path: Path, still_clock: MockClock) -> None:
    start = 65536 - 2
    async with serving(tmp_path) as host, by_hand(host.path(), features=None) as guest:
        for ring in guest.rings.values():
            ring.reset(start)
        await guest.start(bases=dict.fromkeys(range(5), start))
        for _ in range(4):
            await guest.works(host.vm())
        bases = await guest.stop()
        assert bases[0] == 2
        await guest.start(bases=bases)
        await guest.works(host.vm())


# Memory


async def test_hot_plugged_memory_is_reported_and_freed(tmp_path: Path) -> None:
    async with serving(tmp_path) as host, running_guest(host.path(), 64 * MIB, QUIET) as guest:
        region = await guest.plug(32 * MIB, 1 << 32)
        fill(guest.ram, region.start, 32 * MIB)
        await guest.driver.report()
        assert guest.ram.resident_in(region.start, 32 * MIB) == 0
        assert host.vm().statistics().guest_memory == 96 * MIB


async def test_memory_by_table_instead_of_slots(tmp_path: Path, still_clock: MockClock) -> None:
    ram = GuestRam.around_pci_hole(64 * MIB, hole_start=32 * MIB, hole_end=4 << 30)
    async with serving(tmp_path) as host, await FrontEnd.connect(host.path(), ram) as front_end:
        await front_end.handshake(QEMU_PROTOCOL_FEATURES & ~(1 << 15))
        async with trio.open_nursery() as nursery:
            guest = SimulatedGuest(front_end, nursery, QUIET)
            await guest.load()
            await guest.stop()
            await guest.cont()  # sends the table again
            assert host.vm().statistics().guest_memory == 64 * MIB
            fill(ram, 4 << 30, 8 * MIB)
            await guest.driver.report()
            assert ram.resident_in(4 << 30, 8 * MIB) == 0
            nursery.cancel_scope.cancel()
    ram.close()


async def test_the_table_changes_under_running_rings(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.works(host.vm())
        before = open_fds()
        dimm = guest.ram.add(16 * MIB, 1 << 32)
        for _ in range(3):
            await guest.front_end.set_mem_table()
            fill(guest.ram, 1 << 32, BLOCK)
            await guest.report((1 << 32, BLOCK))
            assert guest.ram.resident_in(1 << 32, BLOCK) == 0
            await guest.works(host.vm())
        await guest.front_end.set_mem_table(guest.ram.regions[:1])
        assert host.vm().statistics().guest_memory == 64 * MIB
        await guest.report((1 << 32, BLOCK))
        assert host.vm().counters.refused_bytes["outside-memory"] == BLOCK
        guest.ram.remove(dimm)
        assert open_fds() == before
        await guest.works(host.vm())


async def test_a_table_without_the_rings_is_refused_and_changes_nothing(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.front_end.add_region(guest.ram.add(16 * MIB, 1 << 32))
        before = open_fds()
        with pytest.raises(Exception, match="5 was refused"):
            await guest.front_end.set_mem_table(guest.ram.regions[1:])
        assert host.vm().statistics().guest_memory == 80 * MIB
        assert open_fds() == before
        await guest.works(host.vm())

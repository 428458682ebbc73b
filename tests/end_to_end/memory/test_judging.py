"""Orders while it is judged anew what the guest has: silence, other drivers, devices, processes."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import MockClock

from protocol.vhost_user import MAX_MEMORY_REGIONS, Request
from protocol.vhost_user_payloads import CONFIG
from protocol.virtio_balloon import CONFIG_SPACE, BalloonFeature
from tests.support.ctl_command import Done, ctl, vm_served
from tests.support.end_to_end import (
    LINUX,
    MIB,
    PAGE,
    LogLines,
    by_hand,
    eventually,
    serving,
    told,
)
from tests.support.restarting.scenario import hosting
from tests.support.vms.judged import ABOVE, RAM, figures, give, with_more
from vhost_balloon.errors import CommandError
from vhost_balloon.figures.statistics import VmState
from vhost_balloon.front_end.orders import SAMPLE_PATIENCE

KERNEL: Final = 50 * MIB
ACTUAL: Final = slice(4, 8)
WITHOUT_OOM: Final = LINUX & ~int(BalloonFeature.DEFLATE_ON_OOM)


async def test_a_guest_that_no_longer_tells_its_total_keeps_what_it_has(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), with_more()) as guest:
        give(guest, RAM - KERNEL)
        await told(guest)
        for total in (None, None):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(host.vm().device().order, 448 * MIB)
                await told(guest)
                give(guest, total)
            assert figures(host) == (512, 512, 448)


async def test_a_new_driver_without_statistics_keeps_what_it_has(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), with_more()) as guest:
        give(guest, RAM - KERNEL)
        await told(guest)
        await guest.front_end.command(Request.RESET_DEVICE)
        guest.fresh()
        await guest.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.vm().device().order, 448 * MIB)
            await told(guest)
            still_clock.jump(SAMPLE_PATIENCE)
        assert figures(host) == (512, 512, 448)
        give(guest, RAM + 2048 * MIB - KERNEL)
        await told(guest)
        assert figures(host) == (2560, 2560, 2496), "its first sample is judged"


async def test_the_newest_order_holds(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), with_more()) as guest:
        async with trio.open_nursery() as nursery:
            for size in range(300, 400):
                nursery.start_soon(host.vm().device().order, size * MIB)
                await trio.testing.wait_all_tasks_blocked()
            give(guest, RAM - KERNEL)
        assert figures(host) == (512, 512, 399)


async def test_an_order_is_not_for_the_next_front_end(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, trio.open_nursery() as nursery:
        refused: list[CommandError] = []

        async def order() -> None:
            try:
                await host.vm().device().order(448 * MIB)
            except CommandError as error:
                refused.append(error)

        async with by_hand(host.path(), with_more()) as guest:
            nursery.start_soon(order)
            await told(guest)
        async with by_hand(host.path(), RAM) as guest:
            await told(guest)
            still_clock.jump(SAMPLE_PATIENCE)
            await told(guest)
            assert figures(host) == (512, 512, 512)
        (error,) = refused
        assert "went away" in str(error)


async def test_an_order_that_is_being_judged_is_not_reached(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with (
        serving(tmp_path) as host,
        by_hand(host.path(), with_more(), features=None) as guest,
    ):
        await host.vm().device().order(448 * MIB)
        assert host.vm().statistics().state is VmState.NO_DRIVER
        await guest.start()
        assert host.vm().statistics().state is VmState.MOVING
        give(guest, RAM - KERNEL)
        await told(guest)
        assert (host.vm().statistics().state, figures(host)) == (VmState.MOVING, (512, 512, 448))
        await guest.front_end.set_config(ACTUAL, (64 * MIB // PAGE).to_bytes(4, "little"))
        assert host.vm().statistics().state is VmState.DONE


async def test_set_waits_for_an_order_that_is_being_judged(
    tmp_path: Path, nursery: trio.Nursery
) -> None:
    ended: list[Done] = []

    async def wait() -> None:
        ended.append(await ctl(tmp_path, "set", "vm1", "448M", "--wait"))

    async with (
        vm_served(tmp_path) as host,
        by_hand(host.path(), with_more(), features=None) as guest,
    ):
        nursery.start_soon(wait)
        await eventually(lambda: host.vm().statistics().pending)
        await guest.start()
        await trio.sleep(0.6)  # it asks several times
        give(guest, RAM - KERNEL)
        await eventually(lambda: not host.vm().statistics().pending)
        assert ended == []
        await guest.front_end.set_config(ACTUAL, (64 * MIB // PAGE).to_bytes(4, "little"))
        await eventually(lambda: bool(ended))
    assert (ended[0].status, ended[0].out.startswith("vm1: 448 MiB after ")) == (0, True)


async def test_a_migration_moves_the_target(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        assert host.vm().statistics().state is VmState.DONE
        config = CONFIG.pack(0, 16, 1) + CONFIG_SPACE.pack(9, 0, 0, 0)
        await guest.front_end.command(Request.SET_CONFIG, config)
        assert host.vm().statistics().state is VmState.MOVING
        await guest.front_end.set_config(ACTUAL, (9).to_bytes(4, "little"))
        assert host.vm().statistics().state is VmState.DONE


async def test_as_many_regions_as_there_can_be(tmp_path: Path) -> None:
    ram = with_more(256 * MIB)
    for number in range(1, MAX_MEMORY_REGIONS - 1):
        ram.add(MIB, ABOVE + number * 4096 * MIB, reserve=False)
    async with hosting(tmp_path) as host, by_hand(host.path(), ram) as guest:
        assert len(host.vm()["regions"]) == MAX_MEMORY_REGIONS
        give(guest, RAM - KERNEL)
        await eventually(lambda: host.vm()["stats-age"] is not None)
        assert host.vm()["guest-memory"] == (RAM - KERNEL + 128 * MIB) // MIB * MIB
        host.manager.kill()
        await guest.front_end.get_config()
        assert host.vm()["guest-memory"] == (RAM - KERNEL + 128 * MIB) // MIB * MIB


# The operator's word


async def test_what_the_guest_says_is_no_news_where_its_memory_is_stated(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines
) -> None:
    file = tmp_path / "vm1.toml"
    file.write_text('memory = "1G"\n')
    async with (
        serving(tmp_path, f"--config={file}") as host,
        by_hand(host.path(), with_more()) as guest,
    ):
        give(guest, RAM - KERNEL)
        await told(guest)
        assert figures(host) == (1024, 1024, 1024)
        assert not log_lines.having("shares")


async def test_a_reload_states_the_memory_or_has_it_judged(tmp_path: Path) -> None:
    file = tmp_path / "vm1.toml"
    file.write_text('memory = "1G"\n')
    async with (
        vm_served(tmp_path, "vm1", f"--config={file}") as host,
        by_hand(host.path(), with_more()) as guest,
    ):
        give(guest, RAM - KERNEL)
        await told(guest)
        await host.vm().device().order(448 * MIB)
        assert figures(host) == (1024, 1024, 448)
        file.write_text("")
        assert (await ctl(tmp_path, "reload", "vm1")).out == "vm1: changed memory\n"
        assert figures(host) == (512, 512, 0), "the balloon stays"
        file.write_text('memory = "2G"\n')
        await ctl(tmp_path, "reload", "vm1")
        assert figures(host) == (2048, 2048, 1472)


# Other devices and processes


async def test_an_order_that_waits_outlives_the_process(tmp_path: Path) -> None:
    """It is judged by the process that carries it out."""
    async with (
        hosting(tmp_path) as host,
        by_hand(host.path(), with_more(), features=None) as guest,
    ):
        host.ask("balloon", value=448 * MIB)
        host.manager.kill()
        await guest.start()
        host.manager.kill()
        await guest.front_end.get_config()
        assert (host.vm()["pending"], host.vm()["state"]) == (True, "moving")
        give(guest, RAM - KERNEL)
        await eventually(lambda: not host.vm()["pending"])
        host.manager.kill()
        config = CONFIG_SPACE.unpack(await guest.front_end.get_config())
        assert config[0] == 64 * MIB // PAGE
        assert host.vm()["target"] == 448 * MIB


async def test_the_statistics_of_a_driver_end_with_it(tmp_path: Path) -> None:
    """Also for the next process: they would be taken for the next driver's."""
    async with hosting(tmp_path) as host, by_hand(host.path(), with_more()) as guest:
        give(guest, RAM - KERNEL)
        await eventually(lambda: host.vm()["guest-memory"] == RAM)
        await guest.front_end.command(Request.RESET_DEVICE)
        assert host.vm()["stats"] == {}
        host.manager.kill()
        await guest.front_end.get_config()
        assert (host.vm()["stats"], host.vm()["guest-memory"]) == ({}, RAM)


async def test_the_guests_total_is_that_of_its_sample(tmp_path: Path) -> None:
    """The balloon has moved since."""
    ram = with_more(256 * MIB)
    async with hosting(tmp_path) as host, by_hand(host.path(), ram, features=WITHOUT_OOM) as guest:
        give(guest, RAM - KERNEL)
        await eventually(lambda: host.vm()["guest-memory"] == RAM)
        await guest.front_end.set_config(ACTUAL, (212 * MIB // PAGE).to_bytes(4, "little"))
        host.manager.kill()
        await guest.front_end.get_config()
        host.ask("balloon", value=300 * MIB)  # without a fresh sample
        assert (host.vm()["guest-memory"], host.vm()["target"]) == (RAM, 300 * MIB)


@pytest.mark.parametrize("online", [True, False])
async def test_a_target_that_was_changed_for_a_restart_is_judged(
    tmp_path: Path, online: bool
) -> None:
    file = tmp_path / "vm.toml"
    file.write_text('target = "448M"\n')
    async with (
        hosting(tmp_path, f"--config={file}") as host,
        by_hand(host.path(), RAM) as guest,
    ):
        give(guest, RAM - KERNEL)
        await eventually(lambda: bool(host.vm()["stats"]))
        await guest.front_end.add_region(guest.ram.add(1024 * MIB, ABOVE))
        file.write_text('target = "400M"\n')
        host.manager.stop(signal.SIGKILL)
        host.manager.start()
        await guest.front_end.get_config()
        give(guest, RAM - KERNEL + online * 1024 * MIB)
        await eventually(lambda: not host.vm()["pending"])
        memory = 1536 * MIB if online else RAM
        assert (host.vm()["guest-memory"], host.vm()["target"]) == (memory, 400 * MIB)

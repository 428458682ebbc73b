"""The target in a configuration file is what each front end starts with."""

from __future__ import annotations

from pathlib import Path

import trio

from tests.support.end_to_end import MIB, PAGE, by_hand, eventually, to_target
from tests.support.vms.operated import operated
from vhost_balloon.simulator.guest import running_guest
from vhost_balloon.simulator.options import DriverOptions

QUIET = DriverOptions(report_delay=None)


def file(folder: Path, target: str) -> str:
    """The option that names a file with this target."""
    path = folder / "vm1.toml"
    path.write_text(f"target = '{target}'\n")
    return f"--config={path}"


async def test_an_initial_target_is_what_each_front_end_starts_with(tmp_path: Path) -> None:
    async with operated(tmp_path, file(tmp_path, "48M")) as (host, client):
        for _ in range(2):
            async with by_hand(host.path()) as guest:
                num_pages = (await guest.front_end.get_config())[:4]
                assert int.from_bytes(num_pages, "little") == 16 * MIB // PAGE
                assert host.vm().statistics().target == 48 * MIB
                await client.execute("balloon", value=32 * MIB)
                assert host.vm().statistics().target == 32 * MIB
            await eventually(lambda: not host.vm().attached)


async def test_a_guest_reaches_its_initial_target_without_an_order(tmp_path: Path) -> None:
    async with (
        operated(tmp_path, file(tmp_path, "32M")) as (host, _),
        running_guest(host.path(), 64 * MIB, QUIET) as guest,
    ):
        with trio.fail_after(20):
            await guest.driver.wait_balloon(32 * MIB // PAGE)
        assert host.vm().statistics().actual == 32 * MIB
        await to_target(host.vm(), guest, 64 * MIB)


async def test_an_initial_target_above_guest_memory_is_all_of_it(tmp_path: Path) -> None:
    async with operated(tmp_path, file(tmp_path, "1T")) as (host, _), by_hand(host.path()) as guest:
        assert (await guest.front_end.get_config())[:4] == bytes(4)
        assert host.vm().statistics().target == 64 * MIB

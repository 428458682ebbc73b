"""A VM's name over restarts: it stays as long as the front end that was attached under it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.rig.qmp import QMPClient
from tests.support.command import listening
from tests.support.end_to_end import by_hand, eventually
from tests.support.restarting.scenario import Host, hosting, upgrade
from tests.support.restarting.service_manager import ServiceManager


def restart_with(host: Host, *options: str) -> None:
    """Kill the daemon, and start it with these options instead of those of the same name."""
    host.manager.stop(signal.SIGKILL)
    names = tuple(option.partition("=")[0] for option in options)
    kept = tuple(option for option in host.manager.options if not option.startswith(names))
    host.manager.options = (*kept, *options)
    host.manager.start()


async def test_another_name_waits_until_no_front_end_is_held(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host:
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            restart_with(host, "--name=web1")
            await guest.inflate([5001])
            assert host.vm()["id"] == "vm1"
            warning = "the VM keeps the name 'vm1' while its front end is attached: 'web1' applies"
            assert warning in host.log()
            await upgrade(host)
            host.manager.kill()
            await guest.inflate([5002])
            assert host.vm()["id"] == "vm1"
        await eventually(lambda: not host.vm()["attached"])
        assert host.vm()["id"] == "vm1", "until the next start"
        host.manager.kill()
        assert host.vm()["id"] == "web1"
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            restart_with(host, "--name=db")
            assert host.vm()["id"] == "web1"
            restart_with(host, "--name=web1")
            assert host.vm()["id"] == "web1"
            assert host.log().count("the VM keeps the name") == 4


async def test_a_name_that_followed_a_path_stays_when_that_changes(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host:
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            restart_with(host, f"--socket-path={tmp_path}/moved.sock")
            await guest.inflate([5001])
            assert host.vm()["id"] == "vm1"
        await eventually(lambda: not host.vm()["attached"])
        host.manager.kill()
        assert host.vm()["id"] == "moved"


@pytest.mark.parametrize(
    "name",
    ["\udcff" * 255, "\\udcff", "web 1\n", "\U0001f9c0" * 63],
    ids=["no UTF-8", "an escape", "blanks", "long"],
)
async def test_odd_names_stay(tmp_path: Path, name: str) -> None:
    async with hosting(tmp_path, f"--name={name}") as host, by_hand(host.path()) as guest:
        before = host.vm()["id"]
        await guest.inflate([5000])
        host.manager.kill()
        restart_with(host, "--name=other")
        await guest.inflate([5001])
        assert host.vm()["id"] == before
        host.ask("balloon-pause", id=before)
        assert host.vm()["pause-reasons"] == ["operator"]


async def test_a_name_that_looks_escaped_is_said_to_be_taken_literally(tmp_path: Path) -> None:
    async with hosting(tmp_path, "--name=web\\x2d1") as host:
        assert host.vm()["id"] == "web\\x2d1"
        text = "the VM's name 'web\\x2d1' looks like the output of systemd-escape"
        assert [line.count(text) for line in host.log().splitlines()].count(1) == 1


async def test_sockets_that_contradict_each_other_do_not_cost_a_guest_its_device(
    tmp_path: Path,
) -> None:
    """The unit's sockets were edited while a VM is held: the one of the VM is used."""

    def vm() -> dict[str, Any]:
        with QMPClient(tmp_path / "control") as qmp:
            (found,) = qmp.execute("query-vms")
            return dict(found)

    paths = [tmp_path / "vm1.sock", tmp_path / "vm2.sock"]
    options = (f"--control-socket={tmp_path}/control", "--stats-interval=0")
    manager = ServiceManager(*options)
    manager.stored.append(("vm.socket", listening(paths[0]).detach()))
    with manager:
        async with by_hand(paths[0]) as guest:
            await guest.inflate([5000])
            manager.stop(signal.SIGKILL)
            manager.stored.insert(0, ("vm.socket", listening(paths[1]).detach()))
            manager.start()
            await guest.inflate([5001])
            assert (vm()["id"], vm()["socket-path"]) == ("vm1", str(paths[0]))
            mistake = "not used; the previous ones stay in force: several front-end sockets were"
            assert mistake in manager.log.read_text()
        await eventually(lambda: not vm()["attached"])
        async with by_hand(paths[0]) as guest:
            await guest.inflate([5000])

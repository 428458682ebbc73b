"""Restarts and the VMs around them: added, removed, gone, damaged, or the cause of crashes."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from tests.command import listening
from tests.end_to_end import MIB, by_hand, eventually
from tests.restarting import damage, hosting, records
from tests.rig.errors import QMPError
from vhost_balloon.simulator import FrontEnd, GuestRam

FREE = 4
"""What the store holds: control socket, reply pipe and options; with a VM also its listener."""


# Coming and going


async def test_a_vm_that_was_added_stays_and_one_that_was_removed_goes(tmp_path: Path) -> None:
    async with hosting(tmp_path, names=()) as host:
        for name in ("a", "b"):
            host.ask("vm-add", id=name, socket_path=str(host.path(name)), target=48 * MIB)
        await eventually(lambda: len(records(host)) == 2)
        host.manager.kill()
        assert [vm["id"] for vm in host.ask("query-vms")] == ["a", "b"]
        async with by_hand(host.path("b")) as guest:
            await guest.inflate([5000])
            assert host.vm("b")["target"] == 48 * MIB
        await eventually(lambda: not host.vm("b")["attached"])
        host.ask("vm-del", id="b")
        await eventually(lambda: len(records(host)) == 1)
        host.manager.kill()
        assert [vm["id"] for vm in host.ask("query-vms")] == ["a"]
        assert not host.path("b").exists()
        host.ask("vm-del", id="a")
        await eventually(lambda: len(host.manager.names()) == 3)


async def test_a_vm_that_is_configured_no_more_stays_until_its_front_end_goes(
    tmp_path: Path,
) -> None:
    async with hosting(tmp_path, names=("vm1", "vm2")) as host:
        async with by_hand(host.path("vm2")) as guest:
            await guest.inflate([5000])
            host.manager.stop(signal.SIGKILL)
            host.manager.options = tuple(o for o in host.manager.options if "vm2" not in o)
            host.manager.start()
            await guest.inflate([5001])
            assert host.vm("vm2")["leaving"]
        await eventually(lambda: [vm["id"] for vm in host.ask("query-vms")] == ["vm1"])
        await eventually(lambda: len(host.manager.names()) == FREE + 1)


async def test_a_mistake_in_the_file_is_no_reason_to_leave_guests_alone(tmp_path: Path) -> None:
    """The file's VMs go on as they were, and the file can be read again once it is mended."""
    file = tmp_path / "vms.toml"
    text = f'[vm.web]\nsocket-path = "{tmp_path}/web.sock"\nstats-interval = 77\n'
    file.write_text(text)
    async with hosting(tmp_path, f"--config={file}") as host, by_hand(host.path("web")) as guest:
        await guest.inflate([5000])
        file.write_text(text + "nonsense\n")
        host.manager.kill()
        await eventually(lambda: f"{file}: line 4: " in host.log())
        await guest.inflate([5001])
        web = host.vm("web")
        assert (web["attached"], web["leaving"], web["origin"]) == (True, False, "config")
        assert web["settings"]["stats-interval"] == 77
        with pytest.raises(QMPError, match=r"vms\.toml: line 4: "):
            host.ask("config-reload")
        more = f'[vm.more]\nsocket-path = "{tmp_path}/more.sock"\n'
        file.write_text(text + more)
        assert host.ask("config-reload")["added"] == ["more"]
        host.manager.kill()
        assert [vm["id"] for vm in host.ask("query-vms")] == ["vm1", "web", "more"]


async def test_what_cannot_be_added_at_a_restart_stays_while_it_is_used(tmp_path: Path) -> None:
    async with hosting(tmp_path, names=("vm1", "vm2")) as host, by_hand(host.path()) as guest:
        await guest.inflate([5000])
        host.manager.stop(signal.SIGKILL)
        host.path("vm3").mkdir()
        host.manager.options += (f"--socket-path={host.path('vm3')}",)
        host.manager.start()
        await guest.inflate([5001])
        assert [vm["id"] for vm in host.ask("query-vms")] == ["vm1", "vm2"]
        await eventually(lambda: str(host.path("vm3")) in host.log())


async def test_the_service_manager_is_told_who_is_there(tmp_path: Path) -> None:
    async with hosting(tmp_path, names=("vm1", "vm2")) as host:
        assert host.manager.told[-1].endswith("STATUS=serving 2 VMs, 0 attached")
        async with by_hand(host.path()):
            await eventually(lambda: "STATUS=serving 2 VMs, 1 attached" in host.manager.told)
            host.manager.stop(signal.SIGKILL)
            damage(host)
            del host.manager.told[:]
            host.manager.start()
            inert = "STATUS=serving 2 VMs, 1 attached, 1 inert"
            await eventually(lambda: host.manager.told[-1].endswith(inert))


async def test_a_vm_whose_socket_moved_stays_beside_the_new_one(tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    async with hosting(tmp_path) as host:
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            host.manager.stop(signal.SIGKILL)
            old, new = f"--socket-path={host.path()}", f"--socket-path={moved}/vm1.sock"
            host.manager.options = tuple(new if o == old else o for o in host.manager.options)
            host.manager.start()
            await guest.inflate([5001])
            found = {vm["id"]: (vm["attached"], vm["leaving"]) for vm in host.ask("query-vms")}
            assert found == {"vm1": (False, False), "vm1-2": (True, True)}
            host.manager.kill()
            await guest.inflate([5002])
        await eventually(lambda: [vm["id"] for vm in host.ask("query-vms")] == ["vm1"])


async def test_a_front_end_that_went_while_the_daemon_was_away(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host:
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            assert len(host.manager.names()) > 15
            host.manager.stop(signal.SIGKILL)
        host.manager.start()
        await eventually(lambda: len(host.manager.names()) == FREE + 1)
        assert not host.vm()["attached"]
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])


async def test_sigterm_leaves_sockets_and_store(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.front_end.get_config()  # all before it was served
        before = host.manager.names()
        assert host.manager.stop(signal.SIGTERM) == 0
        assert host.path().is_socket()
        left = host.manager.names()  # but what was about to be removed
        assert set(left) <= set(before)
        assert len(left) > 15
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.connect(str(host.path()))  # nobody who comes meanwhile is lost
        host.manager.start()
        await guest.inflate([5001])


async def test_what_nobody_knows_is_swept(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.front_end.get_config()  # all before it was served
        host.manager.stop(signal.SIGKILL)
        before = set(host.manager.names())  # some of it may have been about to be removed
        host.manager.stored += [(".zz", os.eventfd(0)), (".vzz", os.memfd_create("none"))]
        host.manager.stored.append((".zy", listening(tmp_path / "other").detach()))
        host.manager.start()
        await eventually(lambda: set(host.manager.names()) <= before)
        for page in (5001, 5002):
            await guest.inflate([page])
            host.manager.kill()  # what is needed was not swept


@pytest.mark.parametrize("point", ["store.keep:after:2", "record.save:before:1"])
async def test_a_vm_that_is_being_added(tmp_path: Path, point: str) -> None:
    """Killed while it is stored: it is there afterwards, because it is configured."""
    async with hosting(tmp_path, crashes=[point]) as host, by_hand(host.path()) as guest:
        await guest.inflate([5000])
        assert host.manager.restarts == 1


async def test_a_store_that_is_full_refuses_front_ends_and_nothing_else(tmp_path: Path) -> None:
    async with hosting(tmp_path, limit=FREE + 1 + 21) as host:
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
        await eventually(lambda: not host.vm()["attached"])
    tight = tmp_path / "tight"
    tight.mkdir()
    async with hosting(tight, limit=FREE + 1 + 20) as host:
        with GuestRam.create(MIB * 16) as ram:
            front_end = await FrontEnd.connect(host.path(), ram)
            with pytest.raises(Exception, match="closed"):
                await front_end.handshake()
            front_end.close()
        await eventually(lambda: "refused: no more descriptors" in host.log())


async def test_a_vm_that_is_in_the_file_again_stays(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    table = f'[vm.db]\nsocket-path = "{tmp_path}/db.sock"\n'
    file.write_text(table)
    async with hosting(tmp_path, f"--config={file}") as host:
        async with by_hand(tmp_path / "db.sock") as guest:
            file.write_text("")
            host.manager.kill()
            assert host.vm("db")["leaving"]
            file.write_text(table)
            host.manager.kill()
            assert not host.vm("db")["leaving"]
            await guest.inflate([5000])
        await eventually(lambda: not host.vm("db")["attached"])
        async with by_hand(tmp_path / "db.sock") as guest:
            await guest.inflate([5000])

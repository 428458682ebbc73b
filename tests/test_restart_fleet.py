"""Restarts and the VMs around them: added, removed, gone, damaged, or the cause of crashes."""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
from pathlib import Path
from zlib import crc32

import pytest
import trio

from protocol.vhost_user import Request
from tests.command import listening
from tests.end_to_end import BLOCK, MIB, by_hand, eventually, fill, is_filled
from tests.restarting import CRASHING, Host, hosting
from tests.rig.errors import QMPError
from vhost_balloon.record import MAGIC, STATE_VERSION
from vhost_balloon.simulator import FrontEnd, GuestRam

FREE = 3
"""What the store holds without a VM: control socket, reply pipe; and with one, its listener."""


def records(host: Host) -> list[int]:
    return [fd for name, fd in host.manager.stored if name.startswith(".v")]


def damage(host: Host) -> None:
    """Overwrite all that is in the records' areas."""
    for fd in records(host):
        size = os.fstat(fd).st_size
        os.pwrite(fd, b"\xa5" * (size - 1024), 1024)


def promote(host: Host) -> None:
    """Have the records be of the next version."""
    for fd in records(host):
        with mmap.mmap(fd, 1024) as page:
            length = int.from_bytes(page[8:12], "little")
            header = json.loads(page[16 : 16 + length]) | {"version": STATE_VERSION + 1}
            text = json.dumps(header, separators=(",", ":")).encode()
            page[:16] = MAGIC + len(text).to_bytes(4, "little") + crc32(text).to_bytes(4, "little")
            page[16 : 16 + len(text)] = text


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
        await eventually(lambda: len(host.manager.names()) == 2)


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
        assert f"{file}: line 4: " in host.log()
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
        assert str(host.path("vm3")) in host.log()


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
        before = host.manager.names()
        host.manager.stored += [(".zz", os.eventfd(0)), (".vzz", os.memfd_create("none"))]
        host.manager.stored.append((".zy", listening(tmp_path / "other").detach()))
        host.manager.start()
        await eventually(lambda: host.manager.names() == before)
        await guest.inflate([5001])


# State that cannot be used


async def is_inert(host: Host, front_end: FrontEnd) -> None:
    """Every request is acknowledged, over stop and cont, and nothing is done."""
    assert host.vm()["state"] == "inert"
    with trio.fail_after(10):
        await front_end.enable_rings(False)
        await front_end.get_vring_base(0)
        await front_end.get_config()
        await front_end.set_config(slice(4, 8), bytes(4))
        await front_end.enable_rings(True)
        await front_end.command(Request.RESET_DEVICE)


async def test_damaged_state_leaves_the_connection_and_does_nothing(tmp_path: Path) -> None:
    async with hosting(tmp_path, names=("vm1", "vm2")) as host:
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            host.manager.stop(signal.SIGKILL)
            damage(host)
            host.manager.start()
            await is_inert(host, guest.front_end)
            host.manager.kill()
            await is_inert(host, guest.front_end)
            assert host.manager.restarts == 1, "no crash but the one that was asked for"
            async with by_hand(host.path("vm2")) as other:
                await other.inflate([5000])
        await eventually(lambda: not host.vm()["attached"])
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])


async def test_damaged_state_of_a_vm_that_only_the_record_knew(tmp_path: Path) -> None:
    async with hosting(tmp_path, names=()) as host:
        host.ask("vm-add", id="a", socket_path=str(host.path("b")))
        async with by_hand(host.path("b")) as guest:
            await guest.inflate([5000])
            host.manager.stop(signal.SIGKILL)
            damage(host)
            host.manager.start()
            await guest.front_end.get_u64(Request.GET_FEATURES)
            assert [(vm["id"], vm["state"]) for vm in host.ask("query-vms")] == [("b", "inert")]
        await eventually(lambda: host.ask("query-vms") == [])


async def test_state_of_a_later_version_discards_nothing(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        fill(guest.ram, 32 * MIB, BLOCK)
        await guest.inflate([5000])
        host.manager.stop(signal.SIGKILL)
        promote(host)
        host.manager.start()
        for _ in range(2):
            await guest.report((32 * MIB, BLOCK))
            assert is_filled(guest.ram, 32 * MIB, BLOCK)
            assert "foreign-state" in host.vm()["refused-bytes"]
            host.manager.kill()
        bases = await guest.stop()
        await guest.start(bases=bases)
        await guest.inflate([5001])


async def test_a_vm_that_crashes_the_daemon_is_left_and_the_others_served(tmp_path: Path) -> None:
    async with hosting(tmp_path, names=("vm1", "vm2")) as host, by_hand(host.path("vm2")) as other:
        await other.inflate([5000])
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            host.manager.stop(signal.SIGKILL)
            host.manager.program = CRASHING
            host.manager.environment["CRASH_AT"] = "handle:bug:1"
            host.manager.start()
            with trio.fail_after(30):
                await guest.front_end.get_config()
            assert host.manager.restarts == 3
            await is_inert(host, guest.front_end)
            del host.manager.environment["CRASH_AT"]
            await other.inflate([5001])
        assert "ended this program 3 times" in host.log()


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
        assert "refused: no more descriptors" in host.log()

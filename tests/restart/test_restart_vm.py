"""Restarts: changed options, front ends that go meanwhile, leftovers in the store."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
import trio

from tests.rig.errors import QMPError
from tests.support.command import listening
from tests.support.end_to_end import MIB, by_hand, eventually
from tests.support.restarting.scenario import KEPT, Host, damage, hosting


def restart_with(host: Host, *options: str, without: str = "") -> None:
    """Kill the daemon and start it with other options."""
    host.manager.stop(signal.SIGKILL)
    kept = tuple(o for o in host.manager.options if not without or not o.startswith(without))
    host.manager.options = (*kept, *options)
    host.manager.start()


# Options


async def test_a_changed_setting_applies_to_the_next_front_end(tmp_path: Path) -> None:
    """Except a target, which applies at once: it is an order, and this is how to correct one."""
    file = tmp_path / "vm.toml"
    file.write_text('target = "60M"\n')
    async with hosting(tmp_path, f"--config={file}") as host:
        async with by_hand(host.path()) as guest:
            host.ask("balloon", value=48 * MIB)
            host.manager.kill()
            assert host.vm()["target"] == 48 * MIB, "the setting is the same, so the order holds"
            file.write_text('target = "40M"\n')
            restart_with(host, "--no-stats")
            await guest.inflate([5000])
            assert host.vm()["target"] == 40 * MIB
            assert host.vm()["settings"]["stats"] is False
            assert "stats-vq" in host.vm()["features"], "it was negotiated earlier"
        await eventually(lambda: not host.vm()["attached"])
        async with by_hand(host.path()) as guest:
            assert host.vm()["target"] == 40 * MIB
            assert "stats-vq" not in host.vm()["features"]


MISTAKES = {
    "an unknown option": ["--no-such-option"],
    "a value": ["--discard=sometimes"],
    "only prints": ["--version"],
    "only checks": ["--check-config"],
    "no such file": ["--config=/nowhere/at/all.toml"],
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_mistake_in_the_options_does_not_cost_a_guest_its_device(
    tmp_path: Path, mistake: str
) -> None:
    async with hosting(tmp_path, "--no-stats") as host, by_hand(host.path()) as guest:
        await guest.inflate([5000])
        restart_with(host, *MISTAKES[mistake])
        await guest.inflate([5001])
        assert host.vm()["settings"]["stats"] is False
        assert "these options are not used; the previous ones stay in force" in host.log()
        host.manager.kill()
        await guest.inflate([5002])
        restart_with(host, without=MISTAKES[mistake][0])
        await guest.inflate([5003])
        assert host.log().count("these options are not used") == 2


async def test_nor_does_a_mistake_in_the_file(tmp_path: Path) -> None:
    """The daemon continues with the old settings, and reads the file again once it is corrected."""
    file = tmp_path / "vm.toml"
    file.write_text("stats-interval = 77\n")
    async with hosting(tmp_path, f"--config={file}") as host:
        restart_with(host, without="--stats-interval")
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            assert host.vm()["settings"]["stats-interval"] == 77
            file.write_text("stats-interval = 77\nnonsense\n")
            host.manager.kill()
            await eventually(lambda: f"{file}: line 2: " in host.log())
            await guest.inflate([5001])
            assert host.vm()["attached"]
            assert host.vm()["settings"]["stats-interval"] == 77
            with pytest.raises(QMPError, match=r"vm\.toml: line 2: "):
                host.ask("config-reload")
            file.write_text("stats-interval = 5\n")
            assert host.ask("config-reload")["changed"] == ["stats-interval"]
            host.manager.kill()
            await guest.inflate([5002])
            assert host.vm()["settings"]["stats-interval"] == 5


async def test_a_vm_whose_socket_moved_keeps_its_front_end(tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    async with hosting(tmp_path) as host:
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            restart_with(host, f"--socket-path={moved}/vm1.sock", without="--socket-path")
            await guest.inflate([5001])
            await eventually(lambda: not host.path().exists())
            host.manager.kill()
            await guest.inflate([5002])
        await eventually(lambda: not host.vm()["attached"])
        async with by_hand(moved / "vm1.sock") as guest:
            await guest.inflate([5000])
        await eventually(lambda: len(host.manager.names()) == KEPT)


# Coming and going


async def test_the_status_line_says_whether_a_front_end_is_attached(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host:
        assert host.manager.told[-1].endswith("STATUS=no front end is attached")
        async with by_hand(host.path()):
            await eventually(lambda: "STATUS=a front end is attached" in host.manager.told)
            host.manager.stop(signal.SIGKILL)
            damage(host)
            del host.manager.told[:]
            host.manager.start()
            inert = "STATUS=a front end is answered without a device"
            await eventually(lambda: host.manager.told[-1].endswith(inert))
        await eventually(lambda: "STATUS=no front end is attached" in host.manager.told)


async def test_a_front_end_that_went_while_the_daemon_was_away(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host:
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            assert len(host.manager.names()) == KEPT + 1
            host.manager.stop(signal.SIGKILL)
        host.manager.start()
        await eventually(lambda: len(host.manager.names()) == KEPT)
        assert not host.vm()["attached"]
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])


async def test_sigterm_leaves_sockets_and_store(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.front_end.get_config()  # waits for all earlier messages
        before = host.manager.names()
        assert host.manager.stop(signal.SIGTERM) == 0
        assert host.path().is_socket()
        assert host.manager.names() == before
        assert len(before) == KEPT + 1
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.connect(str(host.path()))  # a client that connects meanwhile is not lost
        host.manager.start()
        await guest.inflate([5001])


async def test_a_waiting_front_end_is_served_after_a_restart(tmp_path: Path) -> None:
    """The second front end connected while the first was served."""
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.inflate([5000])
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.connect(str(host.path()))
            host.manager.kill()
            await guest.inflate([5001])
            waiting.sendall(bytes.fromhex("010000000100000000000000"))
            guest.front_end.close()
            waiting.settimeout(10)
            assert len(waiting.recv(100)) == 20


async def test_unknown_descriptors_are_swept(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.front_end.get_config()  # waits for all earlier messages
        host.manager.stop(signal.SIGKILL)
        before = host.manager.names()
        host.manager.stored += [(".zz", os.eventfd(0)), (".record-0", os.memfd_create("none"))]
        host.manager.stored.append((".listener-9@1,2", listening(tmp_path / "other").detach()))
        gone, ours = socket.socketpair()
        gone.close()
        host.manager.stored.append((".connection-99", ours.detach()))
        host.manager.start()
        await eventually(lambda: host.manager.names() == before)
        for page in (5001, 5002):
            await guest.inflate([page])
            host.manager.kill()  # nothing needed was dropped


@pytest.mark.parametrize(
    "point",
    [
        *(f"store.keep:{side}:{count}" for side in ("before", "after") for count in range(1, 10)),
        *(f"record.save:{side}:{count}" for side in ("before", "after") for count in range(1, 4)),
    ],
)
async def test_killed_at_its_first_start(tmp_path: Path, point: str) -> None:
    """The store is incomplete, or the record is empty.

    The front end comes after that: it could be lost between accept() and its keep().
    """
    async with hosting(tmp_path, crashes=[point]) as host:
        await trio.to_thread.run_sync(host.manager.wait_restarts, 1)
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
            assert host.manager.restarts == 1
            host.manager.kill()
            await guest.inflate([5001])
            assert len(host.manager.names()) == KEPT + 1
            assert "warning" not in host.log()


async def test_a_full_store_does_not_keep_a_front_end_from_being_served(tmp_path: Path) -> None:
    """The service manager does not report it, so no front end can be refused for it."""
    async with hosting(tmp_path, limit=3) as host:
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
        await eventually(lambda: not host.vm()["attached"])
        host.manager.kill()
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])


# Another VM


async def test_a_vm_is_not_affected_by_another_ones_daemon(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    async with (
        hosting(folders[0]) as one,
        hosting(folders[1]) as two,
        by_hand(two.path()) as neighbour,
    ):
        async with by_hand(one.path()) as guest:
            await guest.inflate([5000])
            await neighbour.inflate([5000])
            one.manager.stop(signal.SIGKILL)
            await neighbour.inflate([5001])
            damage(one)
            one.manager.start()
            assert one.vm()["state"] == "inert"
            await neighbour.start(bases=await neighbour.stop())
        await neighbour.inflate([5002])
        assert (two.manager.restarts, two.vm()["requests"]["inflate"]) == (0, 3)

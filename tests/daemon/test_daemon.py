"""The daemon as a process: sockets, ends and log."""

from __future__ import annotations

import grp
import json
import os
import signal
import socket
import stat
from pathlib import Path

import pytest
import trio

from tests.support.command import daemon, listening
from tests.support.control_client import Client
from tests.support.end_to_end import MIB, by_hand
from vhost_balloon.simulator.front_end import FrontEnd
from vhost_balloon.simulator.guest import running_guest
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.options import DriverOptions

QUIET = DriverOptions(report_delay=None)


# Sockets


def test_permissions_and_leftovers_at_the_end(tmp_path: Path) -> None:
    vm, control = tmp_path / "vm1.sock", tmp_path / "qmp.sock"
    options = ["--control-mode=0660", "--control-group=1"]
    with daemon(f"--socket-path={vm}", f"--control-socket={control}", *options) as running:
        assert stat.S_IMODE(vm.stat().st_mode) == 0o600
        assert stat.S_IMODE(control.stat().st_mode) == 0o660
        assert control.stat().st_gid == 1
        code, log = running.end()
        assert (code, "Traceback" in log) == (0, False)
    assert list(tmp_path.iterdir()) == []


def test_socket_mode_and_group(tmp_path: Path) -> None:
    vm, group = tmp_path / "vm1.sock", grp.getgrgid(os.getgid()).gr_name
    with daemon(f"--socket-path={vm}", "--socket-mode=666", f"--socket-group={group}"):
        assert stat.S_IMODE(vm.stat().st_mode) == 0o666
        assert vm.stat().st_gid == os.getgid()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    vm = tmp_path / "vm1.sock"
    listening(vm).close()
    assert vm.is_socket()
    with daemon(f"--socket-path={vm}"), socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(vm))


def test_a_killed_daemon_is_followed_by_a_new_one(tmp_path: Path) -> None:
    vm = tmp_path / "vm1.sock"
    with daemon(f"--socket-path={vm}") as running:
        assert running.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert vm.is_socket()
    with daemon(f"--socket-path={vm}") as running:
        assert running.end()[0] == 0
    assert not vm.exists()


def test_another_daemons_socket_is_left_alone(tmp_path: Path) -> None:
    vm = tmp_path / "vm1.sock"
    with daemon(f"--socket-path={vm}") as first:
        vm.unlink()
        with daemon(f"--socket-path={vm}"):
            assert first.end()[0] == 0
            assert vm.is_socket()
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(vm))


# Ends


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_with_a_front_end(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "vm1.sock"
    with daemon(f"--socket-path={path}") as running:
        async with running_guest(path, 128 * MIB, QUIET) as guest:
            await guest.touch(64 * MIB)
            await guest.free()
            await guest.driver.report()
            assert guest.resident() < 8 * MIB
            code, log = await trio.to_thread.run_sync(running.end, number)
            assert code == 0
            assert "Traceback" not in log
            with trio.fail_after(5):
                await guest.back_end_gone.wait()
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_without_a_front_end(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "vm1.sock"
    with daemon(f"--socket-path={path}") as running:
        code, log = running.end(number)
    assert (code, "Traceback" in log, path.exists()) == (0, False, False)


async def test_it_ends_while_a_front_end_is_half_way(tmp_path: Path) -> None:
    path = tmp_path / "vm1.sock"
    with daemon(f"--socket-path={path}") as running, socket.socket(socket.AF_UNIX) as silent:
        silent.connect(str(path))
        silent.send(b"\1\0\0")
        assert running.end()[0] == 0


async def test_an_inherited_connection(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs, daemon(f"--fd={theirs.fileno()}", fd=theirs.fileno()) as running:
        name = f"fd{theirs.fileno()}"
        assert name in running.first_line
        theirs.close()
        with GuestRam.create(64 * MIB) as ram:
            async with FrontEnd(trio.socket.from_stdlib_socket(ours), ram) as front_end:
                await front_end.handshake()
                assert front_end.queue_num == 5
        assert running.process.wait(timeout=5) == 0, "it ends with its only front end"


# The log


async def test_the_log_as_json(tmp_path: Path) -> None:
    path = tmp_path / "vm1.sock"
    with daemon(f"--socket-path={path}", "--log-format=json", "--log-level=debug") as running:
        async with by_hand(path) as guest:
            await guest.inflate([1 << 30])
            await guest.front_end.send(1000)
            await guest.front_end.get_u64(1)
        _, log = running.end()
    entries = [json.loads(line) for line in [running.first_line, *log.splitlines()]]
    assert all(set(entry) >= {"time", "level", "message"} for entry in entries)
    warnings = {entry["message"]: entry for entry in entries if entry["level"] == "warning"}
    assert warnings["inflate: not discarded: outside-memory"]["vm"] == "vm1"
    assert warnings["refused request 1000: not supported"]["vm"] == "vm1"


async def test_the_log_level(tmp_path: Path) -> None:
    path = tmp_path / "vm1.sock"
    with daemon(f"--socket-path={path}", "--log-level=warning", wait_for=path) as running:
        async with by_hand(path) as guest:
            await guest.inflate([1 << 30])
        code, log = running.end()
    assert (code, log) == (0, "warning: vm1: inflate: not discarded: outside-memory\n")


async def test_a_vm_that_is_shown_by_qmp(tmp_path: Path) -> None:
    path, control = tmp_path / "web.sock", tmp_path / "qmp.sock"
    with daemon(f"--socket-path={path}", f"--control-socket={control}"):
        async with by_hand(path) as guest:
            async with await trio.open_unix_socket(control) as stream:
                client = Client(stream)
                await client.negotiate()
                (vm,) = await client.execute("query-vms")
                assert (vm["id"], vm["attached"], vm["guest-memory"]) == ("web", True, 64 * MIB)
                assert vm["front-end-pid"] == os.getpid()
                await client.execute("balloon", value=32 * MIB)
            assert int.from_bytes((await guest.front_end.get_config())[:4], "little") == 8192

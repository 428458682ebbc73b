"""Permissions of the daemon's sockets at the start, after a reload and after a restart."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from tests.support.command import COMMAND, listening
from tests.support.end_to_end import LogLines, by_hand, serving
from tests.support.hostile.tampering import EVERY, Found, Kind
from tests.support.restarting.scenario import hosting, upgrade
from vhost_balloon.ctl.client import Client


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


async def test_a_reload_changes_the_sockets_permissions(tmp_path: Path) -> None:
    file, control = tmp_path / "vm1.toml", tmp_path / "control"
    file.touch()
    async with serving(tmp_path, f"--control-socket={control}", f"--config={file}") as host:
        file.write_text("socket-mode = '0666'\nsocket-group = '7'\n")
        await trio.to_thread.run_sync(ask_reload, control)
        assert (mode(host.path()), host.path().stat().st_gid) == (0o666, 7)
        file.write_text("")
        await trio.to_thread.run_sync(ask_reload, control)
        assert (mode(host.path()), host.path().stat().st_gid) == (0o600, os.getegid())
        assert mode(control) == 0o600


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
async def test_but_not_those_of_a_file_in_its_place(
    tmp_path: Path, kind: Kind, log_lines: LogLines
) -> None:
    folder, file, control = tmp_path / "vm", tmp_path / "vm1.toml", tmp_path / "control"
    folder.mkdir()
    file.touch()
    with ExitStack() as stack:
        async with serving(folder, f"--control-socket={control}", f"--config={file}") as host:
            kind(host.path(), stack)
            file.write_text("socket-mode = '0666'\nsocket-group = '7'\n")
            before = Found.below(tmp_path)
            await trio.to_thread.run_sync(ask_reload, control)
            assert Found.below(tmp_path) == before
            told = f"warning: vm1: cannot set the permissions of {host.path()}: "
            assert log_lines.having(told)


@pytest.mark.parametrize("how", ["restart", "upgrade"])
async def test_settings_that_changed_meanwhile_are_in_force(tmp_path: Path, how: str) -> None:
    file = tmp_path / "vm1.toml"
    file.touch()
    async with hosting(tmp_path, f"--config={file}", limit=16 * (how == "restart")) as host:
        assert mode(host.path()) == 0o600
        file.write_text("socket-mode = '0640'\nsocket-group = '7'\n")
        if how == "restart":
            host.manager.stop(signal.SIGKILL)
            host.manager.options = (*host.manager.options, "--control-mode=0660")
            host.manager.start()
            assert mode(host.control) == 0o660
        else:
            await upgrade(host)
        assert (mode(host.path()), host.path().stat().st_gid) == (0o640, 7)


async def test_permissions_that_cannot_be_set_strand_no_vm(tmp_path: Path) -> None:
    file = tmp_path / "vm1.toml"
    file.touch()
    async with hosting(tmp_path, f"--config={file}") as host, by_hand(host.path()) as guest:
        file.write_text("socket-group = 'no-such-group'\n")
        host.manager.kill()
        assert "warning: there is no group 'no-such-group'" in host.log()
        await guest.inflate([5000])


def test_a_socket_that_is_the_service_managers_keeps_its_permissions(tmp_path: Path) -> None:
    """Also at a reload; the socket is handed over under a name that is not stored."""
    path, file, control = tmp_path / "web.sock", tmp_path / "web.toml", tmp_path / "control"
    file.touch()
    with listening(path) as sock:
        path.chmod(0o640)
        command = f"""
import os, sys
os.dup2({sock.fileno()}, 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="web")
os.execv(sys.argv[1], sys.argv[1:])
"""
        options = [f"--config={file}", f"--control-socket={control}", "--socket-mode=0666"]
        with subprocess.Popen(
            [COMMAND[0], "-c", command, *COMMAND, *options],
            pass_fds=[sock.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stderr is not None
                assert "serving web" in process.stderr.readline()
                assert mode(path) == 0o640
                file.write_text("socket-mode = '0604'\n")
                ask_reload(control)
                assert "belong to the service manager" in process.stderr.readline()
                assert mode(path) == 0o640
                process.terminate()
                assert process.wait(10) == 0
            finally:
                process.kill()
        assert path.is_socket()


def ask_reload(control: Path) -> None:
    with Client(str(control)) as client:
        client.execute("config-reload")

"""The daemon's socket files at its end, after an upgrade or a restart, and what lies there then.

Each kind of tampering has a VM of its own, all of them on one daemon.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.command import COMMAND, daemon, listening
from tests.end_to_end import LogLines, by_hand, eventually, serving
from tests.huge_pages import need_root
from tests.restarting import Host, hosting, upgrade
from tests.tampering import EVERY, GONE, REPLACED, Found, laid_out, tamper


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name leaves room: a socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def layout(within: Path) -> tuple[Path, dict[str, Path], list[str]]:
    """The folder of all sockets, the sockets by what becomes of them, and the options for it."""
    folder = within / "sockets"
    folder.mkdir()
    paths = laid_out(folder)
    return folder, paths, [f"--socket-path={path}" for path in paths.values()]


def ended_well(host: Host) -> None:
    assert host.manager.stop(signal.SIGTERM) == 0
    assert "Traceback" not in host.log()


# At the end


def test_only_what_is_still_the_daemons_socket_is_removed_at_its_end(short: Path) -> None:
    folder, paths, options = layout(short)
    with ExitStack() as stack, daemon(*options) as running:
        tamper(paths, stack)
        before = Found.below(folder)
        code, _, log = running.end()
        assert (code, "Traceback" in log) == (0, False), log
        assert Found.below(folder) == before.without(paths["untouched"])
        assert not paths["untouched"].exists()


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
def test_nor_is_what_is_not_its_control_socket(tmp_path: Path, kind: object) -> None:
    (tmp_path / "control").mkdir()
    control, vm = tmp_path / "control/it", tmp_path / "vm.sock"
    with ExitStack() as stack, daemon(f"--socket-path={vm}", f"--control-socket={control}") as it:
        assert callable(kind)
        kind(control, stack)
        before = Found.below(tmp_path)
        code, _, log = it.end()
        assert (code, "Traceback" in log) == (0, False), log
        assert Found.below(tmp_path) == before.without(vm)


async def test_nor_after_upgrades(short: Path) -> None:
    folder, paths, options = layout(short)
    with ExitStack() as stack:
        async with hosting(short, *options, limit=0) as host:
            await upgrade(host)
            await upgrade(host)
            tamper(paths, stack)
            before = Found.below(folder)
            ended_well(host)
            assert Found.below(folder) == before.without(paths["untouched"])
            assert not host.control.exists()
            assert not host.path().exists()


async def test_what_was_tampered_with_before_an_upgrade_is_left_as_well(short: Path) -> None:
    """What can be opened anew is; all else is left and said, and no other VM notices."""
    folder, paths, options = layout(short)
    with ExitStack() as stack:
        async with hosting(short, *options, limit=0) as host, by_hand(host.path()) as guest:
            tamper(paths, stack)
            before = Found.below(folder)
            await upgrade(host)
            await guest.inflate([5000])
            anew = {"another_listened", "removed"}
            served = {vm["id"] for vm in host.ask("query-vms")} - {"vm1", "untouched"}
            assert served == anew
            for kind in (*REPLACED, *GONE):
                if kind.__name__ not in anew:
                    assert f"error: cannot listen on {paths[kind.__name__]}" in host.log() or (
                        f"error: {paths[kind.__name__]}" in host.log()
                    )
            ended_well(host)
            gone = [paths[name] for name in ("untouched", *anew)]
            assert Found.below(folder) == before.without(*gone)


@pytest.mark.parametrize("number", [1, 13, 16, 30])
async def test_what_hinders_the_removal_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines, number: int
) -> None:
    def unlink(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    async with serving(tmp_path, f"--control-socket={tmp_path}/control"):
        monkeypatch.setattr(os, "unlink", unlink)
    monkeypatch.undo()
    for name in ("vm1.sock", "control"):
        path = tmp_path / name
        assert path.is_socket()
        assert log_lines.having("warning", f"{path} stays: {os.strerror(number)}")


def test_a_file_system_that_became_read_only(tmp_path: Path) -> None:
    need_root("A READ-ONLY FILE SYSTEM")
    path = tmp_path / "vm1.sock"
    bind = f'mount --bind "{tmp_path}" "{tmp_path}" && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", bind, "sh", *COMMAND, f"--socket-path={path}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert "serving" in process.stderr.readline()
            own = ["nsenter", f"--target={process.pid}", "--mount"]
            subprocess.run([*own, "mount", "-o", "remount,bind,ro", tmp_path], check=True)
            process.terminate()
            assert process.wait(10) == 0
            (warning,) = [line for line in process.stderr if line.startswith("warning")]
            assert warning == f"warning: {path} stays: Read-only file system\n"
        finally:
            process.kill()
    ro = bind.replace("&&", f'&& mount -o remount,bind,ro "{tmp_path}" &&')
    done = subprocess.run(
        [*command[:4], ro, "sh", *COMMAND, f"--socket-path={tmp_path}/new.sock"],
        capture_output=True,
        text=True,
        check=False,
    )
    told = f"vhost-balloon: cannot listen on {tmp_path}/new.sock: Read-only file system\n"
    assert (done.returncode, done.stderr) == (2, told)


# Removal


async def test_vm_del_after_a_restart(short: Path) -> None:
    folder, paths, _ = layout(short)
    with ExitStack() as stack:
        async with hosting(short) as host:
            for name, path in paths.items():
                host.ask("vm-add", id=name, socket_path=str(path))
            host.manager.kill()
            tamper(paths, stack)
            before = Found.below(folder)
            for name in paths:
                host.ask("vm-del", id=name)
            assert Found.below(folder) == before.without(paths["untouched"])
            assert "Traceback" not in host.log()
            assert [vm["id"] for vm in host.ask("query-vms")] == ["vm1"]


@pytest.mark.parametrize("restart", [False, True])
async def test_a_reload_moves_them(short: Path, restart: bool) -> None:
    folder, paths, _ = layout(short)
    file = short / "vms.toml"
    tables = [f'[vm.{name}]\nsocket-path = "{path}"\n' for name, path in paths.items()]
    file.write_text("".join(tables))
    with ExitStack() as stack:
        async with hosting(short, f"--config={file}") as host:
            if restart:
                host.manager.kill()
            tamper(paths, stack)
            before = Found.below(folder)
            moved = short / "moved"
            moved.mkdir()
            file.write_text("".join(tables).replace(str(folder), str(moved)))
            for name in paths:
                (moved / name).mkdir()
            assert set(host.ask("config-reload")["changed"]) == set(paths)
            assert Found.below(folder) == before.without(paths["untouched"])
            file.write_text("")
            assert set(host.ask("config-reload")["removed"]) == set(paths)
            assert not [path for path in moved.rglob("*") if path.is_socket()]
            assert "Traceback" not in host.log()


async def test_a_vm_that_is_configured_no_more_takes_its_socket_along(tmp_path: Path) -> None:
    async with hosting(tmp_path, names=("vm1", "vm2", "vm3")) as host:
        host.manager.stop(signal.SIGKILL)
        gone = {f"--socket-path={host.path(name)}" for name in ("vm2", "vm3")}
        host.manager.options = tuple(o for o in host.manager.options if o not in gone)
        host.path("vm3").unlink()
        with listening(host.path("vm3")):
            host.manager.start()
        assert not host.path("vm2").exists()
        assert host.path("vm3").is_socket(), "it is another's by now"
        host.ask("vm-add", id="vm2", socket_path=str(host.path("vm2")))
        async with by_hand(host.path("vm2")) as guest:
            await guest.inflate([5000])


async def test_what_an_older_version_left_is_served_and_its_file_never_removed(
    tmp_path: Path,
) -> None:
    async with hosting(tmp_path, names=()) as host:
        host.ask("vm-add", id="vm1", socket_path=str(host.path()))
        host.manager.stop(signal.SIGKILL)
        assert any("@" in name for name in host.manager.names())
        host.manager.stored = [(name.partition("@")[0], fd) for name, fd in host.manager.stored]
        host.manager.start()
        async with by_hand(host.path()) as guest:
            await guest.inflate([5000])
        await eventually(lambda: not host.vm()["attached"])
        host.ask("vm-del", id="vm1")
        assert host.path().is_socket()
        host.ask("vm-add", id="vm1", socket_path=str(host.path()))
        host.ask("vm-del", id="vm1")
        assert not host.path().exists()


async def test_a_front_end_outlives_the_loss_of_its_path(tmp_path: Path) -> None:
    """Somebody listens there when the daemon starts again."""
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.inflate([5000])
        host.path().unlink()
        with listening(host.path()):
            host.manager.kill()
            assert f"error: {host.path()} is in use: another process listens on it" in host.log()
            await guest.inflate([5001])
            vm = host.vm()
            assert (vm["attached"], vm["state"], vm["leaving"]) == (True, "done", True)
        await guest.start(bases=await guest.stop())


# Permissions


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


async def test_a_reload_changes_the_sockets_own_permissions_and_no_others(short: Path) -> None:
    folder, paths, _ = layout(short)
    file = short / "vms.toml"

    def configured(setting: str) -> str:
        tables = (f'[vm.{vm}]\nsocket-path = "{path}"\n{setting}' for vm, path in paths.items())
        return "".join(tables)

    file.write_text(configured(""))
    with ExitStack() as stack:
        async with hosting(short, f"--config={file}") as host:
            tamper(paths, stack)
            before = Found.below(folder)
            file.write_text(configured("socket-mode = '0666'\nsocket-group = '7'\n"))
            assert set(host.ask("config-reload")["changed"]) == set(paths)
            untouched = paths["untouched"]
            assert Found.below(folder).without(untouched) == before.without(untouched)
            assert (mode(untouched), untouched.stat().st_gid) == (0o666, 7)
            for kind in EVERY:
                told = f"{kind.__name__}: cannot set the permissions of {paths[kind.__name__]}: "
                assert f"warning: {told}" in host.log()
            file.write_text(configured(""))
            host.ask("config-reload")
            assert (mode(untouched), untouched.stat().st_gid) == (0o600, os.getegid())


@pytest.mark.parametrize("how", ["restart", "upgrade"])
async def test_settings_that_changed_meanwhile_are_in_force(tmp_path: Path, how: str) -> None:
    file = tmp_path / "vms.toml"
    table = f'[vm.web]\nsocket-path = "{tmp_path}/web.sock"\n'
    file.write_text(table)
    async with hosting(tmp_path, f"--config={file}", limit=100 * (how == "restart")) as host:
        assert mode(host.path("web")) == 0o600
        file.write_text(table + "socket-mode = '0640'\nsocket-group = '7'\n")
        if how == "restart":
            host.manager.stop(signal.SIGKILL)
            host.manager.options = (*host.manager.options, "--control-mode=0660")
            host.manager.start()
            assert mode(host.control) == 0o660
        else:
            await upgrade(host)
        assert (mode(host.path("web")), host.path("web").stat().st_gid) == (0o640, 7)
        assert mode(host.path()) == 0o600


async def test_permissions_that_cannot_be_had_end_no_vm(tmp_path: Path) -> None:
    file = tmp_path / "vms.toml"
    table = f'[vm.web]\nsocket-path = "{tmp_path}/web.sock"\n'
    file.write_text(table)
    async with hosting(tmp_path, f"--config={file}") as host, by_hand(host.path("web")) as guest:
        file.write_text(table + "socket-group = 'no-such-group'\n")
        host.manager.kill()
        assert "warning: there is no group 'no-such-group'" in host.log()
        await guest.inflate([5000])
        assert host.vm("web")["leaving"] is False


def test_a_socket_that_is_the_service_managers_keeps_its_permissions(tmp_path: Path) -> None:
    """Also at a reload; it is handed over under a name that is not stored."""
    path, file, control = tmp_path / "web.sock", tmp_path / "vms.toml", tmp_path / "control"
    file.write_text(f'[vm.web]\nsocket-path = "{path}"\n')
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
                file.write_text(f'[vm.web]\nsocket-path = "{path}"\nsocket-mode = "0604"\n')
                ask_reload(control)
                assert "is the service manager's" in process.stderr.readline()
                assert mode(path) == 0o640
                process.terminate()
                assert process.wait(10) == 0
            finally:
                process.kill()
        assert path.is_socket()


def ask_reload(control: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rw") as lines:
        sock.connect(str(control))
        lines.readline()
        for name in ("qmp_capabilities", "config-reload"):
            lines.write(f'{{"execute": "{name}"}}\n')
            lines.flush()
            assert '"return"' in lines.readline()

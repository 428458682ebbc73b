"""The hub's options, and --check-config, which has no effect on anything."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import vhost_balloon
from vhost_balloon.errors import OperatorError
from vhost_balloon.hub.options import parse
from vhost_balloon.hub.reload import read
from vhost_balloon.policy.settings import Mode, PolicySettings
from vhost_balloon.service.listeners import SocketOptions


@pytest.fixture(autouse=True)
def no_run_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)


def test_by_default_there_is_no_policy_and_no_control_socket() -> None:
    options = parse([])
    assert options.files == ()
    assert (options.run_folder, options.control_access) == (None, SocketOptions())
    assert not options.check_only


async def test_files_are_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = tmp_path / "one.toml", tmp_path / "two.toml"
    one.write_text("policy.mode = 'on'\npolicy.reserve = 0.2")
    two.write_text("policy.mode = 'dry-run'")
    monkeypatch.chdir(tmp_path)
    options = parse(["--config=one.toml", f"--config={two}"])
    assert options.files == (one, two)
    assert await read(options.files) == PolicySettings(Mode.DRY_RUN, reserve=0.2)
    with pytest.raises(OperatorError, match=r"^cannot read .*/three.toml: No such file"):
        await read(parse(["--config=three.toml"]).files)


def test_the_run_folder_is_the_service_managers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_folder(*arguments: str) -> Path | None:
        return parse(list(arguments)).run_folder

    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path}:/nowhere")
    other = tmp_path / "other"
    other.mkdir()
    assert run_folder() == tmp_path
    assert run_folder(f"--run-folder={other}") == other
    monkeypatch.chdir(tmp_path)
    assert run_folder("--run-folder=other") == other
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/nowhere")
    with pytest.raises(OperatorError, match="run folder /nowhere is not a folder"):
        run_folder()
    assert run_folder(f"--run-folder={other}") == other


def test_who_may_connect_to_the_control_socket() -> None:
    options = parse(["--control-mode=0660", "--control-group=kvm"])
    assert options.control_access == SocketOptions(0o660, "kvm")


MISTAKES = [
    ("--run-folder=", "name is empty"),
    ("--run-folder=/dev/null", "the run folder /dev/null is not a folder"),
    ("--control-mode=rw", "'rw' is not a string of octal digits"),
    ("--control-group=no-such-group", "there is no group 'no-such-group'"),
    ("--config={folder}/bad.toml", "bad.toml: line 2: 'mode' expects one of off, dry-run, on"),
    ("--config={folder}", "Is a directory"),
    ("--config={folder}/cgroup.toml", "line 3: 'cgroup': there is no folder /gone"),
    ("--metrics-certificate={folder}/none.pem", "none.pem"),
    ("--metrics-address=192.0.2.1:1", "cannot listen on 192.0.2.1:1"),
]


def check(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Status and output of --check-config, which changes no file and sends no message."""

    def contents() -> dict[Path, tuple[int, int]]:
        found = {path: path.lstat() for path in folder.rglob("*")}
        return {path: (info.st_ino, info.st_mtime_ns) for path, info in found.items()}

    before = contents()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{folder}")
        manager.setblocking(False)
        done = subprocess.run(
            [sys.executable, "-m", "vhost_balloon.hub", "--check-config",
             f"--folder={folder}", *arguments],
            env=os.environ | {"NOTIFY_SOCKET": f"@{folder}", "WATCHDOG_USEC": "1000000"},
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        with pytest.raises(BlockingIOError):
            manager.recv(1)
    assert contents() == before
    return done.returncode, done.stdout, done.stderr


GOOD = (0, f"vhost-balloon-hub {vhost_balloon.__version__}\n", "")


def test_a_check_has_no_effect_and_asks_no_vm(tmp_path: Path) -> None:
    (tmp_path / "hub.toml").write_text('[policy]\nmode = "on"\n')
    options = (f"--config={tmp_path}/hub.toml", f"--run-folder={tmp_path}", "--control-mode=0660")
    with socket.socket(socket.AF_UNIX) as vm:
        vm.bind(str(tmp_path / "web1.control"))
        vm.listen()
        vm.setblocking(False)
        assert check(tmp_path, *options) == GOOD
        with pytest.raises(BlockingIOError):
            vm.accept()


def test_a_check_works_while_a_hub_has_the_address_and_the_socket(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as metrics,
        socket.socket(socket.AF_UNIX) as control,
    ):
        control.bind(str(tmp_path / "control"))
        control.listen()
        address = f"--metrics-address=127.0.0.1:{metrics.getsockname()[1]}"
        assert check(tmp_path, address, f"--run-folder={tmp_path}") == GOOD


@pytest.mark.parametrize(("argument", "text"), MISTAKES)
def test_a_check_finds_mistakes(tmp_path: Path, argument: str, text: str) -> None:
    (tmp_path / "bad.toml").write_text('[policy]\nmode = "auto"\n')
    (tmp_path / "cgroup.toml").write_text('[policy]\nmode = "on"\ncgroup = "/gone"\n')
    status, out, err = check(tmp_path, argument.format(folder=tmp_path))
    assert (status, out) == (2, "")
    assert err.startswith("vhost-balloon-hub: ")
    assert text in err
    assert err.count("\n") == 1

"""vhost-balloonctl qemu-args: options for QEMU on standard output, and nothing else there."""

from __future__ import annotations

import os
import shlex
import socket
from pathlib import Path

import pytest

from tests.support.ctl_command import ctl, failure, run, vm_served
from tests.support.end_to_end import by_hand, eventually
from tests.support.fakes.daemons import Serve, answering, fake_daemons
from tests.support.helpers import GIB, MIB
from tests.support.made_up_proc import Proc

HINT = "cannot look; do something"


async def test_qemu_args(tmp_path: Path) -> None:
    folder = tmp_path / "a,b c"
    folder.mkdir()
    async with vm_served(folder) as host:
        words = (await ctl(folder, "qemu-args", "vm1", "--memory=1G", "--json")).json()
        path = str(host.path()).replace(",", ",,")
        assert words == [
            "-m", "1073741824b",
            "-object", "memory-backend-memfd,id=mem,size=1073741824b,share=on",
            "-machine", "memory-backend=mem",
            "-chardev", f"socket,id=balloon,path={path}",
            "-device",
            "vhost-user-test-device-pci,chardev=balloon,virtio-id=5,num_vqs=5,config_size=16",
        ]  # fmt: skip
        done = await ctl(folder, "qemu-args", "vm1", "--memory=1G")
        assert shlex.split(done.out) == words
        assert done.out.count("\n") == 1
        assert "size=SIZE," in (await ctl(folder, "qemu-args", "vm1")).out
        async with by_hand(host.path(), 64 * MIB):
            assert f"size={64 * MIB}b" in (await ctl(folder, "qemu-args", "vm1")).out


async def test_qemu_args_of_a_vm_whose_daemon_has_not_been_started(tmp_path: Path) -> None:
    """systemd holds its socket; QEMU's connection starts the daemon."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "web1.sock"))
        done = await ctl(tmp_path, "qemu-args", "web1", "--memory=1G")
        assert f"path={tmp_path}/web1.sock" in done.out
        assert "there is no VM" in (await ctl(tmp_path, "qemu-args", "../web1")).err


def test_the_setting_replaces_the_present_memory(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A guest with less than its memory plugged, or a VM whose QEMU does not run."""
    with fake_daemons(tmp_path, {"web1": web1(memory=GIB)}):
        where = (f"--folder={tmp_path}", "qemu-args", "web1")
        assert f"size={GIB}b," in run(capsys, *where).out
        assert f"size={50 * MIB}b," in run(capsys, *where, "--memory=50M").out
    for settings in ({}, {"memory": 0}, {"target": 1}):
        with fake_daemons(tmp_path, {"web1": web1(**settings)}):
            assert f"size={64 * MIB}b," in run(capsys, *where).out


def web1(**settings: int) -> Serve:
    """The daemon of a VM with these settings and 64 MiB of memory."""
    return answering(guest_memory=64 * MIB, socket_path="/x", settings=settings)


@pytest.mark.parametrize("settings", [{"memory": "x"}, {"memory": -1}, [], "x"])
def test_settings_of_another_form(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, settings: object
) -> None:
    with fake_daemons(tmp_path, {"web1": answering(settings=settings, socket_path="/x")}):
        error = failure(capsys, f"--folder={tmp_path}", "qemu-args", "web1")
        assert error.startswith("unexpected answer from the daemon")


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_the_hint_goes_to_standard_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str]
) -> None:
    where = (f"--folder={tmp_path}", "qemu-args", "web1", "--memory=1G", *words)
    hint = f"{HINT}\x1b"
    with fake_daemons(tmp_path, {"web1": answering(socket_path="/x", pause_hint=hint)}):
        hinted = run(capsys, *where)
    with fake_daemons(tmp_path, {"web1": answering(socket_path="/x")}):
        plain = run(capsys, *where)
    assert hinted == (0, plain.out, f"vhost-balloonctl: web1: {HINT}\\x1b\n")
    assert plain.err == ""


async def test_a_front_end_that_the_daemon_cannot_examine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with vm_served(tmp_path) as host:
        (Proc(tmp_path / "proc", os.getpid()).folder / "fd").rmdir()
        monkeypatch.setattr(host.vm(), "proc", tmp_path / "proc")
        monkeypatch.setattr(host.vm(), "examiner", tmp_path / "no")
        async with by_hand(host.path()):
            await eventually(lambda: host.vm().attached)
            done = await ctl(tmp_path, "qemu-args", "vm1")
            assert (done.status, done.err.count("\n")) == (0, 1)
            assert "run vhost-balloon-examiner" in done.err
            assert "start the daemon with --discard=always" in done.err
            hint = (await ctl(tmp_path, "status", "vm1")).out.splitlines()[-1]
            assert done.err == f"vhost-balloonctl: vm1: {hint}\n"
            assert "says why" in (await ctl(tmp_path, "list")).out
        await eventually(lambda: not host.vm().attached)
        assert (await ctl(tmp_path, "qemu-args", "vm1")).err == "", "its socket is the user's own"

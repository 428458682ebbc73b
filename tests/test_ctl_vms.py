"""vhost-balloonctl add, remove and reload, against the daemon as a process of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.command import daemon
from tests.end_to_end import MIB, by_hand
from tests.test_ctl import CTL, Done, control, ctl
from vhost_balloon import vm_settings
from vhost_balloon.ctl import options

CHANGES: dict[str, list[str]] = {
    change: [] for change in ("added", "removed", "leaving", "changed", "kept")
}


async def test_add_use_and_remove(tmp_path: Path) -> None:
    path = tmp_path / "web1.sock"
    with daemon(control(tmp_path)) as running:
        assert running.first_line == "info: serving no VM yet\n"
        assert (await ctl(tmp_path, "list", "--json")).json() == []
        done = await ctl(tmp_path, "add", "web1", str(path), "--target=32M")
        assert done == (0, f"web1: listening on {path}\n", "")
        again = await ctl(tmp_path, "add", "web1", f"{path}2")
        assert again == (1, "", "vhost-balloonctl: there is a VM 'web1' already\n")
        async with by_hand(path) as guest:
            target = int.from_bytes((await guest.front_end.get_config())[:4], "little")
            assert target == 32 * MIB // 4096
            busy = await ctl(tmp_path, "remove", "web1")
            assert busy.status == 1
            assert "'web1' has a front end" in busy.err
        # QEMU's end is told when it is seen, so the first try may be too early.
        done = await ctl(tmp_path, "remove", "web1")
        while "has a front end" in done.err:
            done = await ctl(tmp_path, "remove", "web1")
        assert done == (0, "web1: removed\n", "")
        assert not path.exists()
        assert (await ctl(tmp_path, "remove", "web1")).err == (
            "vhost-balloonctl: there is no VM 'web1'\n"
        )
        assert running.end()[0] == 0
    assert os.listdir(tmp_path) == []


def relative_to_here(path: Path) -> str:
    return os.path.relpath(path)


async def test_settings_as_options(tmp_path: Path) -> None:
    given = [
        *("--no-reporting", "--no-deflate-on-oom", "--no-stats", "--no-must-tell-host"),
        *("--no-free-page-hint", "--no-page-poison", "--discard=never", "--discard-hugetlb"),
        *("--discard-other-filesystems", "--target=1.5G", "--stats-interval=0"),
        "--report-rate=64M/s",
        *("--socket-mode=0660", "--socket-group=0", "--json"),
    ]
    with daemon(control(tmp_path)):
        relative = relative_to_here(tmp_path / "web1.sock")
        vm = (await ctl(tmp_path, "add", "web1", relative, *given)).json()
        assert (vm["id"], vm["socket-path"]) == ("web1", str(tmp_path / "web1.sock"))
        assert vm["settings"] == {
            **dict.fromkeys(vm_settings.SWITCHES, False),
            "discard": "never", "discard-hugetlb": True, "discard-other-filesystems": True,
            "target": 3 << 29, "report-rate": 64 * MIB, "stats-interval": 0,
            "socket-mode": "0660", "socket-group": "0",
        }  # fmt: skip
        assert (await ctl(tmp_path, "remove", "web1", "--json")).json() == {"id": "web1"}


async def test_reload(tmp_path: Path) -> None:
    file = tmp_path / "vms.toml"
    file.write_text(f"[vm.a]\nsocket-path = '{tmp_path}/a.sock'\n")
    with daemon(control(tmp_path), f"--config={file}") as running:
        assert running.first_line == "info: serving a\n"
        assert (await ctl(tmp_path, "reload", "--json")).json() == {**CHANGES, "kept": ["a"]}
        file.write_text(file.read_text() + "reporting = 1\n")
        done = await ctl(tmp_path, "reload")
        text = f"vhost-balloonctl: {file}: line 3: 'reporting' expects true or false\n"
        assert done == (1, "", text)
        async with by_hand(tmp_path / "a.sock"):
            file.write_text(f"[vm.b]\nsocket-path = '{tmp_path}/b.sock'\n")
            done = await ctl(tmp_path, "reload")
            assert done == (0, "b: added\na: stays until its front end has gone\n", "")
        file.write_text("")
        assert (await ctl(tmp_path, "reload")).status == 0
        file.write_text("")
        while (await ctl(tmp_path, "list", "--names")).out:
            pass
        done = await ctl(tmp_path, "reload")
        assert done == (0, "no VM is configured in the file\n", "")


@pytest.mark.parametrize(
    "words",
    [
        ["add", "web1"],
        ["add", "web1", "/a", "--target=much"],
        ["add", "web1", "/a", "--target=0"],
        ["add", "web1", "/a", "--report-rate=0"],
        ["add", "web1", "/a", "--report-rate=1M/m"],
        ["add", "web1", "/a", "--stats-interval=-1"],
        ["add", "web1", "/a", "--stats-interval=86401"],
        ["add", "web1", "/a", "--stats-interval=nan"],
        ["add", "web1", "/a", "--discard=some"],
        ["remove"],
        ["reload", "web1"],
    ],
)
def test_mistakes_on_the_command_line(words: list[str]) -> None:
    done = subprocess.run([*CTL, *words], capture_output=True, text=True, check=False)
    result = Done(done.returncode, done.stdout, done.stderr)
    assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)


def test_the_tool_knows_the_daemons_switches_and_limits() -> None:
    """It imports nothing of the daemon's."""
    assert set(options.FEATURES) == set(vm_settings.SWITCHES)
    assert options.MAX_STATS_INTERVAL == vm_settings.MAX_STATS_INTERVAL

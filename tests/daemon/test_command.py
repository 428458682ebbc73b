"""The vhost-balloon command: its output, and its answers to an operator's mistakes."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from tests.support.command import listening, run
from vhost_balloon import __version__
from vhost_balloon.config.config import parse
from vhost_balloon.daemon import daemon as daemon_module
from vhost_balloon.errors import OperatorError

# Output


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"vhost-balloon {__version__}\n", "")


def test_help_names_every_option() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for option in (
        *("--socket-path", "--fd", "--print-capabilities", "--control-socket", "--socket-mode"),
        *("--socket-group", "--control-mode", "--control-group", "--stats-interval"),
        *("--log-level", "--log-format", "--version", "--no-reporting", "--no-deflate-on-oom"),
        *("--report-rate", "--discard-hugetlb", "--name", "--config"),
    ):
        assert option in done.stdout
    assert "--allow-unsealed-memory" not in done.stdout


def test_capabilities() -> None:
    done = run("--print-capabilities")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["type"] == "balloon"


# The operator's mistakes


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        pytest.param([], "no front end: give --socket-path", id="no VM"),
        pytest.param(["--fd=3", "--socket-path={new}"], "for each", id="fd and path"),
        pytest.param(["--socket-path={file}"], "not a socket", id="a file"),
        pytest.param(["--socket-path={folder}"], "not a socket", id="a folder"),
        pytest.param(["--socket-path={live}"], "in use", id="a live listener"),
        pytest.param(["--socket-path={new}", "--control-socket={live}"], "in use", id="control"),
        pytest.param(["--socket-path={folder}/no/a.sock"], "No such file", id="no folder"),
        pytest.param(["--socket-path={file}/a.sock"], "Not a directory", id="below a file"),
        pytest.param(["--socket-path={folder}/" + "x" * 120], "too long", id="a long path"),
        pytest.param(["--socket-path={folder}/" + "x" * 300], "too long", id="a long name"),
        pytest.param(["--socket-path={dangling}"], "in use", id="a dangling link"),
        pytest.param(["--socket-path="], "name", id="an empty path"),
        pytest.param(["--socket-path"], "argument", id="no path"),
        pytest.param(["--socket-path={new}", "--socket-path={new}"], "for each", id="twice"),
        pytest.param(["--socket-path={new}", "--socket-path={folder}/b"], "for each", id="two VMs"),
        pytest.param(
            ["--socket-path={new}", "--allow-unsealed-memory"], "leave it out", id="unsealed memory"
        ),
        pytest.param(
            ["--socket-path={new}", "--control-socket={new}"], "another path", id="control too"
        ),
        pytest.param(["--socket-path={new}", "--name=.web1"], "'.web1'", id="a hidden name"),
        pytest.param(["--socket-path={folder}/.hidden.sock"], "'.hidden'", id=".hidden"),
        *(
            pytest.param(["--socket-path={new}", f"--{which}-mode={mode}"], "mode", id=mode)
            for which, mode in (
                ("socket", "rw"),
                ("socket", "999"),
                ("control", "1777"),
                ("control", "-1"),
            )
        ),
        *(
            pytest.param(["--socket-path={new}", f"--socket-group={group}"], "group", id=group)
            for group in ("no-such-group", "99999999999999999999", "4294967295")
        ),
        *(
            pytest.param(["--socket-path={new}", f"--stats-interval={text}"], "seconds", id=text)
            for text in ("-1", "nan", "inf", "soon", "1e99", "")
        ),
        *(
            pytest.param(
                ["--socket-path={new}", f"--report-rate={text}"], "rate above 0", id=f"rate {text}"
            )
            for text in ("much", "1M/h", "-1", "")
        ),
        pytest.param(["--socket-path={new}", "--report-rate=0/s"], "rate above 0", id="no rate"),
        pytest.param(["--socket-path={new}", "--log-level=loud"], "loud", id="log level"),
        pytest.param(["--socket-path={new}", "--frobnicate"], "--frobnicate", id="unknown option"),
        pytest.param(["--socket-path={new}", "stray"], "stray", id="stray argument"),
        pytest.param(["--socket={new}"], "--socket", id="abbreviation"),
        pytest.param(["--fd=99"], "--fd=99", id="a closed fd"),
        pytest.param(["--fd=-1"], "--fd=-1", id="a negative fd"),
        pytest.param(["--fd=two"], "two", id="no number"),
        pytest.param(["--fd=2"], "--fd=2", id="no socket"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    tmp_path: Path, arguments: list[str], text: str
) -> None:
    paths = {
        "new": tmp_path / "new",
        "file": tmp_path / "file",
        "folder": tmp_path,
        "live": tmp_path / "live",
        "dangling": tmp_path / "dangling",
    }
    paths["file"].touch()
    paths["dangling"].symlink_to("nowhere")
    with listening(paths["live"]):
        before = sorted(tmp_path.iterdir())
        done = run(*(argument.format(**paths) for argument in arguments))
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("vhost-balloon: ")
        assert text in line
        assert "Traceback" not in done.stderr
        assert sorted(tmp_path.iterdir()) == before, "no file is added or removed"


GONE: dict[tuple[str, ...], str] = {
    ("--socket-path={folder}/a", "--socket-path={folder}/b"): (
        "more than one --socket-path: this daemon serves one VM: start one vhost-balloon for each "
        "(under systemd vhost-balloon@NAME.socket)"
    ),
    ("--fd=3", "--fd=4"): (
        "more than one --fd: this daemon serves one VM: start one vhost-balloon for each "
        "(under systemd vhost-balloon@NAME.socket)"
    ),
    ("--socket-path={folder}/a", "--allow-unsealed-memory"): (
        "--allow-unsealed-memory is no longer needed: leave it out (each VM has its own process)"
    ),
    ("--socket-path={folder}/a", "--config={vms}"): (
        "{vms}: line 4: 'vm' is for several VMs, and this daemon serves one: write one file for "
        "each VM, with its keys at the top level"
    ),
    ("--socket-path={folder}/a", "--config={defaults}"): (
        "{defaults}: line 1: 'defaults' is for several VMs, and this daemon serves one: write one "
        "file for each VM, with its keys at the top level"
    ),
}
"""Options of the former daemon for several VMs."""


@pytest.mark.parametrize("arguments", GONE, ids=" ".join)
@pytest.mark.parametrize("check", [False, True], ids=["start", "check"])
def test_options_of_the_former_daemon_say_what_to_use_instead(
    tmp_path: Path, arguments: tuple[str, ...], check: bool
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    paths = {name: tmp_path / f"{name}.toml" for name in ("vms", "defaults")}
    paths["vms"].write_text("stats-interval = 5\n\n\n[vm.web1]\nsocket-path = '/run/web1.sock'\n")
    paths["defaults"].write_text("[defaults]\nreporting = false\n")
    given = [argument.format(folder=folder, **paths) for argument in arguments]
    done = run(*given, *(["--check-config"] if check else []))
    text = GONE[arguments].format(**paths)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"vhost-balloon: {text}\n")
    assert os.listdir(folder) == []


def test_an_fd_must_be_a_connected_stream() -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_UNIX, kind) as alone:
            done = run(f"--fd={alone.fileno()}", fd=alone.fileno())
            assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
            assert "not connected" in done.stderr
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        done = run(f"--fd={theirs.fileno()}", fd=theirs.fileno())
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


async def test_a_group_that_may_not_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[int] = []

    def chown(path: Path, *_: object) -> None:
        modes.append(stat.S_IMODE(path.stat().st_mode))
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.chown", chown)
    with pytest.raises(OperatorError, match=r"cannot listen on .*: Operation not permitted"):
        await daemon_module.run(parse([f"--socket-path={tmp_path}/a.sock", "--socket-group=7"]))
    assert os.listdir(tmp_path) == []
    assert modes == [0o600], "no other user may connect before the permissions are set"

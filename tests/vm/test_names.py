"""Names with unprintable characters: escaped for people, exact for programs."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rig.errors import QMPError
from tests.rig.qmp import QMPClient
from tests.support.command import COMMAND, Daemon, daemon
from tests.support.ctl_command import CTL
from vhost_balloon.ctl import qemu_args
from vhost_balloon.demo.options import parse_options
from vhost_balloon.printable import printable

NAMES = ["esc\x1b[2J", "line\nline", "del\x7f", "c1\x9b", "bidi\u202e\u2066", "raw\udcff", "\u9b5a"]
SHOWN = [
    *("esc\\x1b[2J", "line\\nline", "del\\x7f", "c1\\x9b", "bidi\\u202e\\u2066", "raw\\udcff"),
    "\u9b5a",
]
IDS = [*NAMES[:5], "raw\\udcff", NAMES[6]]
"""As JSON, which cannot carry a byte that is not UTF-8."""


def ctl(folder: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    command = [*CTL, f"--folder={folder}", *words]
    environment = os.environ | {"LC_ALL": "C.UTF-8"}
    return subprocess.run(command, capture_output=True, timeout=20, check=False, env=environment)


def lines_of(data: bytes) -> list[str]:
    lines = data.decode().split("\n")
    assert all(map(str.isprintable, lines)), lines
    return lines


@contextmanager
def daemons(folder: Path, *options: str) -> Iterator[list[Daemon]]:
    """A daemon for each of NAMES."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                daemon(
                    f"--socket-path={folder / name}.sock",
                    f"--control-socket={folder / name}.control",
                    *options,
                    wait_for=folder / f"{name}.control",
                )
            )
            for name in NAMES
        ]


def test_every_name_is_shown_escaped_by_every_command(tmp_path: Path) -> None:
    with daemons(tmp_path) as running:
        names = lines_of(ctl(tmp_path, "list", "--names").stdout)
        assert sorted(names) == sorted([*SHOWN, ""])
        for words in (["list"], ["watch", "--count=1"]):
            done = ctl(tmp_path, *words)
            text = "\n".join(lines_of(done.stdout))
            assert (done.returncode, done.stderr) == (0, b"")
            assert all(name in text for name in SHOWN)
        for name, shown in zip(NAMES, SHOWN, strict=True):
            assert lines_of(ctl(tmp_path, "status", name).stdout)[0] == f"{shown}: disconnected"
            for command in ("qemu-args", "stats", "reload"):
                done = ctl(tmp_path, command, name)
                assert len(lines_of(done.stdout + done.stderr)) == 2
        for one, shown in zip(running, SHOWN, strict=True):
            one.process.terminate()
            _, log = one.process.communicate(timeout=20)
            assert f"info: serving {shown}" in lines_of(log.encode())


def test_programs_get_the_exact_name(tmp_path: Path) -> None:
    with daemons(tmp_path, "--log-format=json") as running:
        vms = json.loads(ctl(tmp_path, "list", "--json").stdout)
        assert [vm["id"] for vm in vms] == sorted(IDS)
        raw = next(vm for vm in vms if vm["id"] == "raw\\udcff")
        assert raw["socket-path"] == f"{tmp_path}/raw\\udcff.sock"
        for path, name in ((tmp_path / f"{name}.control", name) for name in NAMES):
            with QMPClient(path) as qmp:
                (vm,) = qmp.execute("query-vms")
                assert vm["id"] == IDS[NAMES.index(name)]
                qmp.execute("balloon-pause", {"id": vm["id"]})
                path_of_object = f"/machine/peripheral/{vm['id']}"
                qmp.execute("qom-get", {"path": path_of_object, "property": "guest-stats"})
            shown = SHOWN[NAMES.index(name)]
            for word in (vm["id"], shown, name):
                done = ctl(tmp_path, "qemu-args", word, "--json")
                assert f"path={tmp_path}/{name}.sock" in json.loads(done.stdout)[7]
            with QMPClient(path) as qmp, pytest.raises(QMPError, match="not found"):
                qmp.execute("balloon-pause", {"id": f"{vm['id']}x"})
        words = json.loads(ctl(tmp_path, "qemu-args", NAMES[0], "--json").stdout)
        assert f"socket,id=balloon,path={tmp_path}/{NAMES[0]}.sock" in words
        for one, name in zip(running, IDS, strict=True):
            one.wait_for_line()
            assert json.loads(one.first_line)["message"] == f"serving {name}"


def test_vms_are_told_apart_by_name_option_and_by_what_follows_a_dot(tmp_path: Path) -> None:
    """Their sockets' files may have one name, or names that differ at the end."""
    said = {"vm1": "vm1/balloon.sock", "vm2": "vm2/balloon.sock"}
    plain = {name: f"{name}.sock" for name in ("web.example.com", "web.example.org", "web")}
    with ExitStack() as stack:
        for name, path in (said | plain).items():
            socket_path, control = tmp_path / path, tmp_path / f"{name}.control"
            socket_path.parent.mkdir(exist_ok=True)
            options = [f"--socket-path={socket_path}", f"--control-socket={control}"]
            options += [f"--name={name}"] if name in said else []
            stack.enter_context(daemon(*options, wait_for=control))
            with QMPClient(control) as qmp:
                assert qmp.execute("query-name") == {"name": name}
        assert lines_of(ctl(tmp_path, "list", "--names").stdout)[:-1] == sorted(said | plain)
        for name, path in (said | plain).items():
            vm = json.loads(ctl(tmp_path, "status", name, "--json").stdout)
            assert (vm["id"], vm["socket-path"]) == (name, f"{tmp_path}/{path}")


@pytest.mark.parametrize("path", ["/nonexistent/a\nb\x1b[2J", "/nonexistent/\udcff\u202e"])
def test_an_operators_mistake_is_one_printable_line(path: str) -> None:
    command = [*COMMAND, f"--socket-path={path}.sock", "--fd=x\x9b"]
    for words in (command[:-1], command):
        done = subprocess.run(words, capture_output=True, timeout=20, check=False)
        first, end = lines_of(done.stderr)
        assert (done.returncode, end) == (2, "")
        assert first.startswith("vhost-balloon: ")


def test_a_mistake_in_the_demos_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options(["\x1b[2J\udcff"])
    assert "invalid choice: '\\x1b[2J\\udcff'" in capsys.readouterr().err


@given(text=st.text(st.characters()))
def test_printable_text_prints_and_can_be_encoded(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode().decode() == shown
    if text.isprintable():
        assert shown == text


def test_a_shell_reads_quoted_words_back() -> None:
    names = [*NAMES, "it's\x01", "back\\slash\x02", "x\n'\\'\u9b5a0\x1b7", "plain", "two words", ""]
    quoted = [qemu_args._quoted(name) for name in names]
    assert all(map(str.isprintable, quoted))
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {' '.join(quoted)}"], capture_output=True, check=True
    )
    assert done.stdout.split(b"\0")[:-1] == [os.fsencode(name) for name in names]
    assert [shlex.split(word) for word in quoted[-3:-1]] == [["plain"], ["two words"]]

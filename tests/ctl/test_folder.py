"""vhost-balloonctl over a folder: a misbehaving daemon affects only its own VM's line."""

from __future__ import annotations

import json
import os
import resource
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ctl_command import failure, run
from tests.support.fakes.daemons import (
    EVENT,
    GREETING,
    OK,
    VM,
    Serve,
    answering,
    fake_daemons,
    flood,
    full_backlog,
    nobody_listens,
    replies,
    returned,
    say_nothing,
)
from vhost_balloon.name_text import name_text

SILENT = "no answer within 1 s"
GONE = "the daemon closed the connection"
NO_QMP = "does not speak QMP: not a control socket"
TOO_MUCH = "it sent 1 MiB without answering"


def odd(what: str) -> str:
    return f"unexpected answer from the daemon ({what}): another version?"


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"x": value}
    return value


LONG_EVENT = EVENT.strip() + b" " * 10_000 + b"\n"  # floods fast
MISBEHAVIOUR: dict[str, tuple[Serve, str]] = {
    "hangs": (say_nothing, SILENT),
    "greets-and-hangs": (flood(GREETING, b""), SILENT),
    "negotiates-and-hangs": (flood(GREETING + OK + EVENT, b""), SILENT),
    "floods": (flood(GREETING + OK, LONG_EVENT * 10), TOO_MUCH),
    "answers-1-GiB": (flood(GREETING + OK + b'{"return": [', b"0, " * 20_000), TOO_MUCH),
    "no-qmp": (replies(b"HTTP/1.1 400 Bad Request\r\n"), NO_QMP),
    "closes-at-once": (replies(b""), GONE),
    "closes-in-the-middle": (replies(GREETING, OK, b'{"return": [{"id": "clo'), GONE),
    "refuses": (
        replies(GREETING, OK, b'{"error": {"class": "x", "desc": "not\\u001b[2J today"}}\n'),
        "not\\x1b[2J today",
    ),
    "no-vm": (answering({"query-vms": returned([])}), odd("query-vms")),
    "two-vms": (answering({"query-vms": returned([VM, VM])}), odd("query-vms")),
    "wrong-type": (answering(actual="many"), odd("actual")),
    "negative": (answering(resident=-1), odd("resident")),
    "huge-number": (answering(freed_bytes=1 << 64), odd("freed-bytes")),
    "long-state": (answering(state="x" * 1000), odd("state")),
    "many-reasons": (answering(pause_reasons=["x"] * 1000), odd("pause-reasons")),
    "deep": (answering(x=nested(400)), odd("query-vms")),
    "nan": (replies(GREETING, OK, b'{"return": [{"x": NaN}]}\n'), NO_QMP),
}


@pytest.mark.parametrize("how", MISBEHAVIOUR)
def test_a_misbehaving_daemon_affects_only_its_own_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, how: str
) -> None:
    serve, text = MISBEHAVIOUR[how]
    with fake_daemons(tmp_path, {"a": answering(), how: serve, "z": answering()}):
        check_lines(capsys, tmp_path, how, text)


def check_lines(
    capsys: pytest.CaptureFixture[str], folder: Path, name: str, text: str, shown: str | None = None
) -> None:
    """Check that `list` and `watch` show a, z and the text of `name`, also as JSON."""
    where = f"--folder={folder}"
    for words in (["list"], ["watch", "--count=1"]):
        done = run(capsys, where, *words)
        assert (done.status, done.err) == (0, "")
        lines = {line.split()[0]: line for line in done.out.splitlines()[-3:]}
        assert lines["a"].split()[1:4] == lines["z"].split()[1:4] == ["done", "1", "GiB"]
        assert f"{shown or name}  {text}" in done.out.splitlines()
    found = {vm["id"]: vm for vm in run(capsys, where, "list", "--json").json()}
    assert found.keys() == {"a", name, "z"}
    assert found["a"] == VM | {"id": "a"}
    assert found["z"] == VM | {"id": "z"}
    assert found[name].keys() == {"id", "error"}


def test_a_full_backlog_and_a_socket_without_a_listener(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with fake_daemons(tmp_path, {"a": answering(), "z": answering()}):
        with full_backlog(tmp_path / "full.control"):
            check_lines(capsys, tmp_path, "full", SILENT)
        (tmp_path / "full.control").unlink()
        nobody_listens(tmp_path / "dead.control")
        check_lines(capsys, tmp_path, "dead", "cannot connect: nothing listens on it")


@pytest.mark.parametrize(
    ("name", "shown"),
    [("esc\x1b[2J", "esc\\x1b[2J"), ("line\nline", "line\\nline"), ("raw\udcff", "raw\\udcff"),
     ("\u9b5a", "\u9b5a"),
     ("a.b.c", "a.b.c"), ("x" * 28, "x" * 28), ("a'b\"c", "a'b\"c"), ("a\\x2db", "a\\x2db"),
     ("a\\x1bb", "a\\x5cx1bb"), ("a\u202e", "a\\u202e"), ("a\u00a0b", "a\\xa0b")],
)  # fmt: skip
def test_names_of_any_bytes(
    capsys: pytest.CaptureFixture[str], short_folder: Path, name: str, shown: str
) -> None:
    with fake_daemons(short_folder, {"a": answering(), name: replies(b""), "z": answering()}):
        check_lines(capsys, short_folder, name_text(name), GONE, shown)
    with fake_daemons(short_folder, {name: answering()}):
        assert run(capsys, f"--folder={short_folder}", "list", "--names").out == f"{shown}\n"
        found = run(capsys, f"--folder={short_folder}", "status", name, "--json").json()
        assert found["id"] == name_text(name)


def test_the_folder_gives_the_name_and_not_the_daemon(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[dict[str, Any]] = []

    def serve(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        with connection.makefile("rb") as requests:
            for line in requests:
                asked.append(json.loads(line))
                answer = [VM | {"id": "bank", "stats": {}}] if b"query-vms" in line else {}
                connection.sendall(returned(answer))

    where = f"--folder={tmp_path}"
    with fake_daemons(tmp_path, {"web1": serve}):
        assert run(capsys, where, "list").out.splitlines()[1].startswith("web1  done")
        assert run(capsys, where, "list", "--json").json()[0]["id"] == "web1"
        assert run(capsys, where, "status", "web1").out.startswith("web1: done\n")
        for words in (["set", "web1", "1G"], ["set", "web1", "1G", "--wait"], ["pause", "web1"]):
            assert run(capsys, where, *words).out.startswith("web1: ")
        for words in (["resume", "web1", "--json"], ["stats", "web1", "--last", "--json"]):
            assert "bank" not in run(capsys, where, *words).out
        absent = failure(capsys, where, "status", "bank")
        assert absent == "there is no VM 'bank' (known VMs: web1)"
    arguments = [request.get("arguments", {}) for request in asked]
    assert [found for found in arguments if found] == [{"value": 1 << 30}] * 2


def test_only_the_named_vm_is_asked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = threading.Event()

    def serve(connection: socket.socket) -> None:
        asked.set()

    where = f"--folder={tmp_path}"
    with fake_daemons(tmp_path, {"other": serve, "web1": answering()}):
        assert run(capsys, where, "pause", "web1").status == 0
        assert run(capsys, where, "list", "--names").out == "other\nweb1\n"
        assert not asked.is_set()


@pytest.mark.parametrize("name", ["../x/web1", ".", "..", "", "web1.control", "/x/web1", ".hidden"])
def test_a_name_cannot_leave_the_folder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    (tmp_path / "x").mkdir()
    with fake_daemons(tmp_path / "x", {"web1": answering(), ".hidden": answering()}):
        for command in ("status", "reload", "upgrade"):
            error = failure(capsys, f"--folder={tmp_path}/x", command, name)
            assert error.startswith(f"there is no VM {name!r} (known VMs: web1)")


def test_other_files_are_not_vms(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "plain.control").touch()
    (tmp_path / "folder.control").mkdir()
    (tmp_path / "dangling.control").symlink_to("nowhere")
    (tmp_path / "loop.control").symlink_to("loop.control")
    nobody_listens(tmp_path / "web1.sock")
    (tmp_path / "link.control").symlink_to("web1.sock")
    nobody_listens(tmp_path / ".control")
    where = f"--folder={tmp_path}"
    assert run(capsys, where, "list") == (0, f"no VM in {tmp_path}\n", "")
    assert run(capsys, where, "list", "--json").json() == []
    assert run(capsys, where, "list", "--names") == (0, "", "")
    assert f"no VM in {tmp_path}\n" in run(capsys, where, "watch", "--count=1").out
    assert failure(capsys, where, "status", "plain") == "there is no VM 'plain'"
    for command in ("upgrade", "reload"):
        assert failure(capsys, where, command, "--all") == f"no VM in {tmp_path}"


def test_a_missing_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for words in (["list"], ["list", "--names"], ["status", "a"], ["watch", "--json"]):
        error = failure(capsys, f"--folder={tmp_path}/nope", *words)
        assert error == f"there is no folder {tmp_path}/nope: is vhost-balloon running?"
        error = failure(capsys, f"--folder={tmp_path}/file", *words)
        assert error == f"cannot read the folder {tmp_path}/file: Not a directory"
        assert failure(capsys, *words, f"--folder={tmp_path}/file") == error
        assert failure(capsys, "--folder=", *words)


def test_many_silent_ones_are_waited_for_together(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    names = [f"vm{number:03}" for number in range(120)]
    all_connected = threading.Barrier(12)

    def wait_for_all(connection: socket.socket) -> None:
        all_connected.wait(10)
        say_nothing(connection)

    serves = {name: (answering(), wait_for_all)[name.endswith("0")] for name in names}
    with fake_daemons(tmp_path, serves):
        vms = run(capsys, f"--folder={tmp_path}", "list", "--json").json()
    assert not all_connected.broken
    assert [vm["id"] for vm in vms] == names
    silent = [vm["id"] for vm in vms if vm.get("error") == SILENT]
    assert silent == [name for name in names if name.endswith("0")]
    assert sum(vm.get("state") == "done" for vm in vms) == 108


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """Set a soft limit with little room for more descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = len(os.listdir("/proc/self/fd")) + 30
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_descriptor_limit_is_raised_for_many_vms(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, few_descriptors: int
) -> None:
    for number in range(60):
        nobody_listens(tmp_path / f"dead{number}.control")
    with fake_daemons(tmp_path, {"web1": answering()}):
        found = run(capsys, f"--folder={tmp_path}", "list", "--json").json()
    assert found[-1] == VM
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > few_descriptors


def test_vms_beyond_the_descriptor_limit_show_an_error(tmp_path: Path) -> None:
    """The hard limit is below the number of VMs."""
    serves = {f"vm{number:02}": answering() for number in range(60)}
    with fake_daemons(tmp_path, serves):
        done = subprocess.run(
            ["prlimit", "--nofile=40:40", sys.executable, "-m", "vhost_balloon.ctl",
             f"--folder={tmp_path}", "list", "--json"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    vms = json.loads(done.stdout)
    assert [vm["id"] for vm in vms] == sorted(serves)
    errors = {vm["error"] for vm in vms if "error" in vm}
    assert errors == {"cannot connect: Too many open files"}
    assert 20 < sum("error" not in vm for vm in vms) < 40


def test_a_path_longer_than_a_sockets_address(
    capsys: pytest.CaptureFixture[str], short_folder: Path
) -> None:
    """As that of a folder inside a container's."""
    deep, name = short_folder / ("x" * 120), "y" * 200
    deep.mkdir()
    nobody_listens(short_folder / "dead.control")
    (short_folder / "dead.control").rename(deep / "dead.control")
    with fake_daemons(short_folder, {"web1": answering()}):
        os.link(short_folder / "web1.control", deep / f"{name}.control")
        where = f"--folder={deep}"
        dead, vm = run(capsys, where, "list", "--json").json()
        assert dead == {"id": "dead", "error": "cannot connect: nothing listens on it"}
        assert (vm["id"], vm["state"]) == (name, "done")
        assert run(capsys, where, "set", name, "1G").status == 0
        where = f"--control-socket={deep}/{name}.control"
        assert run(capsys, where, "status", "web1", "--json").json()["id"] == "web1"
    absent = f"{deep}/absent.control"
    error = failure(capsys, f"--control-socket={absent}", "list")
    assert error == f"{absent}: no such socket: is vhost-balloon running?"

"""vhost-balloonctl: whatever goes wrong is one line and an exit status, never a traceback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vhost_balloon.ctl import client as ctl_client
from vhost_balloon.ctl.__main__ import main

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
OK = b'{"return": {}}\r\n'
EVENT = b'{"event": "BALLOON_CHANGE", "data": {}}\r\n'
VM = {"id": "web1", "attached": True, "state": "done", "target": 1 << 30, "guest-memory": 1 << 30}

Serve = Callable[[socket.socket], None]


@contextmanager
def server(path: Path, serve: Serve) -> Iterator[str]:
    """A server that gives one connection to serve, and yields the option that names it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        thread = threading.Thread(target=_serve_one, args=(listener, serve), daemon=True)
        thread.start()
        yield f"--control-socket={path}"
    thread.join(10)


def _serve_one(listener: socket.socket, serve: Serve) -> None:
    connection, _ = listener.accept()
    with connection:
        serve(connection)


def replies(*messages: bytes) -> Serve:
    """Say each message: the first at once, the others one a request; then hang up."""

    def serve(connection: socket.socket) -> None:
        with connection.makefile("rb") as requests:
            for number, message in enumerate(messages):
                if number and not requests.readline():
                    return
                connection.sendall(message)

    return serve


def returned(value: Any) -> bytes:
    return json.dumps({"return": value}).encode() + b"\r\n"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command in this process."""
    try:
        status = main(words)
    except SystemExit as end:
        status = int(str(end.code))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def failure(capsys: pytest.CaptureFixture[str], *words: str, status: int = 1) -> str:
    """The one line of a command that has to fail."""
    found, out, err = run(capsys, *words)
    assert (found, out) == (status, "")
    line, end, rest = err.partition("\n")
    assert (end, rest) == ("\n", "")
    assert line.isprintable()
    return line.removeprefix("vhost-balloonctl: ")


# The command line


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["\x1b[2J\n"], "invalid choice"),
        (["list", "web1"], "unrecognized arguments: web1"),
        (["list", "--nope"], "unrecognized arguments: --nope"),
        (["--json", "list"], "--json"),
        (["list", "--js"], "unrecognized arguments: --js"),
        (["status"], "the following arguments are required: VM"),
        (["set", "web1"], "the following arguments are required: SIZE"),
        (["set", "web1", "lots"], "argument SIZE: 'lots' is no size such as 512M"),
        (["set", "web1", "0"], "argument SIZE: '0' is not between 1 byte and 8 EiB"),
        (["set", "web1", "-5M"], ""),
        (["set", "web1", "1G", "--timeout=5"], "--timeout goes with --wait"),
        (["set", "web1", "1G", "--wait", "--timeout=0"], "argument --timeout: '0' is no number"),
        (["set", "web1", "1G", "--wait", "--timeout=nan"], "'nan' is no number of seconds"),
        (["stats", "web1", "--timeout=61"], "'61' is no number of seconds above 0 and up to 60"),
        (["watch", "--interval=x"], "argument --interval: 'x' is no number of seconds"),
        (["watch", "--interval=inf"], "argument --interval: 'inf' is no number of seconds"),
        (["watch", "--count=0"], "argument --count: '0' is no number from 1"),
        (["watch", "--count=" + "9" * 5000], "is no number from 1"),
        (["qemu-args", "web1", "--memory=x"], "argument --memory: 'x' is no size"),
        (["monitoring"], "the following arguments are required: what"),
        (["monitoring", "x"], "invalid choice: 'x'"),
        (["completion", "fish"], "invalid choice: 'fish'"),
        (["list", "--control-socket"], "argument --control-socket: expected one argument"),
    ],
)
def test_a_usage_mistake_is_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    assert text in failure(capsys, *words, status=2)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = run(capsys, "--help")
    assert (status, err) == (0, "")
    assert "qemu-args" in out
    assert run(capsys, "--version") == (0, "vhost-balloonctl 0.1.0\n", "")


# The control socket


def test_no_daemon(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    error = failure(capsys, f"--control-socket={path}", "list")
    assert error == f"there is no {path}: is vhost-balloon running, with this --control-socket?"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    error = failure(capsys, "list", f"--control-socket={path}")
    assert error == f"cannot connect to {path}: nobody listens on it"


def test_paths_that_cannot_be_connected_to(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    for path in (plain, tmp_path, plain / "x", "x" * 200, tmp_path / "a\nb"):
        assert str(path).split("\n")[0] in failure(capsys, "list", f"--control-socket={path}")
    assert failure(capsys, "list", "--control-socket=")


def test_no_permission(tmp_path: Path) -> None:
    """Root may connect to anything, so this is tried without that right."""
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        path.chmod(0)
        command = [sys.executable, "-m", "vhost_balloon.ctl", f"--control-socket={path}", "list"]
        if os.geteuid() == 0:
            command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", *command]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    text = f"vhost-balloonctl: cannot connect to {path}: Permission denied\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", text)


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 400 Bad Request\r\n", b"SSH-2.0\n", b"[]\n", b"{}\n", b"5\n", b"\xff\xfe\n",
     b'{"QMP": 1}\n', b"[" * 100_000 + b"\n", OK, b"null\n"],
)  # fmt: skip
def test_a_server_that_speaks_no_qmp(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, said: bytes
) -> None:
    with server(tmp_path / "s", replies(said)) as option:
        error = failure(capsys, option, "list")
    assert error == f"{tmp_path}/s does not speak QMP: it is no control socket"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"{}\n", "does not speak QMP"),
        (b'{"error": 5}\n', "does not speak QMP"),
        (b'{"error": {"class": "GenericError"}}\n', "does not speak QMP"),
        (b'{"error": {"class": "x", "desc": "no\\n\\u001b[2Jway"}}\n', "no\\n\\x1b[2Jway"),
        (b'{"error": {"class": "CommandNotFound", "desc": "no"}}\n', "no: is"),
        (returned({}), "not understood (query-vms)"),
        (returned([{"id": 1}]), "not understood (query-vms)"),
        (b"", "closed the connection"),
        (b'{"return": ', "closed the connection"),
    ],
)
def test_answers_that_are_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, answer: bytes, text: str
) -> None:
    with server(tmp_path / "s", replies(GREETING, OK, answer)) as option:
        assert text in failure(capsys, option, "list")


def test_the_daemon_goes_away(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for messages in ((b"",), (GREETING,), (GREETING, OK)):
        path = tmp_path / f"s{len(messages)}{messages[0][:1]!r}"
        with server(path, replies(*messages)) as option:
            error = failure(capsys, option, "list")
        assert error == f"the daemon on {path} closed the connection"


def test_events_are_left_and_pieces_put_together(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def serve(connection: socket.socket) -> None:
        for byte in GREETING + EVENT + OK + EVENT + EVENT + returned([VM]):
            connection.sendall(bytes([byte]))
        say_nothing(connection)

    with server(tmp_path / "s", serve) as option:
        status, out, err = run(capsys, option, "list", "--json")
    assert (status, json.loads(out), err) == (0, [VM], "")


def drip(connection: socket.socket) -> None:
    """Never silent for long, and never done."""
    connection.sendall(GREETING + OK)
    try:
        while True:
            connection.sendall(b" ")
            time.sleep(0.02)
    except OSError:
        pass


def events_only(connection: socket.socket) -> None:
    connection.sendall(GREETING + OK)
    try:
        while True:
            connection.sendall(EVENT)
            time.sleep(0.02)
    except OSError:
        pass


def say_nothing(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


@pytest.mark.parametrize("serve", [say_nothing, drip, events_only])
def test_a_server_that_never_answers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    serve: Serve,
) -> None:  # fmt: skip
    limit_patience(monkeypatch)
    with server(tmp_path / "s", serve) as option:
        error = failure(capsys, option, "list")
    assert error == f"no answer from {tmp_path}/s within 0.3 s"


def limit_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time limit, which is the default of the client's argument."""
    assert ctl_client.Client.__init__.__defaults__ == (ctl_client.ANSWER_SECONDS,)
    monkeypatch.setattr(ctl_client.Client.__init__, "__defaults__", (0.3,))


def test_a_server_that_never_accepts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_patience(monkeypatch)
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        error = failure(capsys, f"--control-socket={path}", "list")
    assert error == f"no answer from {path} within 0.3 s"


def test_a_server_that_never_ends_its_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctl_client, "MAX_MESSAGE", 100_000)

    def flood(connection: socket.socket) -> None:
        try:
            while True:
                connection.sendall(b"x" * 65536)
        except OSError:
            pass

    with server(tmp_path / "s", flood) as option:
        assert "does not speak QMP" in failure(capsys, option, "list")


# set --wait gives up where waiting is of no use


def steps(*states: dict[str, Any]) -> Serve:
    """Answer `set --wait`: query-vms before the order, the order, then each of these states."""
    first, *others = [returned([VM | state]) for state in states]
    return replies(GREETING, OK, first, OK, *others)


MOVING = {"state": "moving", "target": 1 << 29, "actual": 3 << 28}


@pytest.mark.parametrize(
    ("last", "text"),
    [
        ({"state": "stuck"}, "web1 is stuck: it keeps 768 MiB, and 512 MiB was asked for"),
        ({"state": "out-of-memory"},
         "web1 is out of memory: it keeps 768 MiB, and 512 MiB was asked for"),
        ({"attached": False, "state": "disconnected"}, "web1 went away"),
        ({"front-end-pid": 99}, "web1 went away"),
        ({"target": 1 << 28}, "web1 was given another target: 256 MiB"),
        ({"id": "web2"}, "there is no VM 'web1' (there are: web2)"),
    ],
)  # fmt: skip
def test_waiting_is_given_up(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, last: dict[str, Any], text: str
) -> None:
    with server(tmp_path / "s", steps({}, MOVING, MOVING, MOVING | last)) as option:
        assert failure(capsys, option, "set", "web1", "512M", "--wait") == text


def test_waiting_has_a_time_limit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with server(tmp_path / "s", steps({}, *[MOVING] * 20)) as option:
        error = failure(capsys, option, "set", "web1", "512M", "--wait", "--timeout=0.3")
    assert error == (
        "web1 did not get there within 0.3 s: moving, it keeps 768 MiB, and 512 MiB was asked for"
    )


def test_the_daemon_goes_away_while_it_is_waited_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with server(tmp_path / "s", steps({}, MOVING, MOVING)) as option:
        error = failure(capsys, option, "set", "web1", "512M", "--wait")
    assert error == f"the daemon on {tmp_path}/s closed the connection"


def test_waiting_goes_on_without_a_driver_and_ends_at_the_target(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The target is a whole number of balloon pages, so it may be a little more than asked."""
    boot = {"state": "no-driver", "target": 1000, "guest-memory": 0, "pending": True}
    done = {"state": "done", "target": 4096, "actual": 4096}
    with server(tmp_path / "s", steps({}, boot, boot, boot, done)) as option:
        status, out, err = run(capsys, option, "set", "web1", "1000", "--wait", "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert 0.3 < found.pop("seconds") < 10
    assert found == {
        "id": "web1", "target": 4096, "actual": 4096, "state": "done", "pending": False,
    }  # fmt: skip

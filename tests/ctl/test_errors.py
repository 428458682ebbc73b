"""vhost-balloonctl's errors: one line and an exit status each, never a traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.ctl_command import CTL, failure, run
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
    listening,
    nobody_listens,
    replies,
    returned,
    say_nothing,
)
from vhost_balloon.ctl import client, link

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
        (["set", "web1", "lots"], "argument SIZE: 'lots' is not a size such as 512M"),
        (["set", "web1", "0"], "argument SIZE: '0' is not between 1 byte and 8 EiB"),
        (["set", "web1", "-5M"], ""),
        (["set", "web1", "4GB"], "argument SIZE: '4GB' is not a size"),
        (
            ["set", "web1", "1024"],
            "1024 is 1 KiB, less than a guest can run on; write 1024M for MiB",
        ),
        (["set", "web1", "512K"], "512K is 512 KiB, less than a guest can run on; write 512M"),
        (["set", "web1", "16383K", "--wait"], "16383K is 16 MiB, less than a guest can run on"),
        (["set", "--json", "web1", "0.01G"], "(--force sets it all the same)"),
        (["set", "web1", "0", "--force"], "argument SIZE: '0' is not between 1 byte and 8 EiB"),
        (["qemu-args", "web1", "--memory=4096"], "argument --memory: 4096 is 4 KiB, less than"),
        (["set", "web1", "1G", "--timeout=5"], "--timeout requires --wait"),
        (["set", "web1", "1G", "--wait", "--timeout=0"], "argument --timeout: '0' is not a number"),
        (["set", "web1", "1G", "--wait", "--timeout=nan"], "'nan' is not a number of seconds"),
        (["stats", "web1", "--timeout=61"], "'61' is not a number of seconds above 0 and up to 60"),
        (["watch", "--interval=x"], "argument --interval: 'x' is not a number of seconds"),
        (["watch", "--interval=inf"], "argument --interval: 'inf' is not a number of seconds"),
        (["watch", "--count=0"], "argument --count: '0' is not a number from 1"),
        (["watch", "--count=" + "9" * 5000], "is not a number from 1"),
        (["qemu-args", "web1", "--memory=x"], "argument --memory: 'x' is not a size"),
        (["monitoring"], "the following arguments are required: what"),
        (["monitoring", "x"], "invalid choice: 'x'"),
        (["completion", "fish"], "invalid choice: 'fish'"),
        (["list", "--control-socket"], "argument --control-socket: expected one argument"),
        (
            ["--folder=/a", "list", "--control-socket=/b"],
            "--folder and --control-socket exclude each other",
        ),
        (
            ["--folder=/a", "--control-socket=/b", "list"],
            "--folder and --control-socket exclude each other",
        ),
        (["reload"], "reload takes either names of VMs or --all"),
        (["upgrade"], "upgrade takes either names of VMs or --all"),
        (["upgrade", "web1", "--all"], "upgrade takes either names of VMs or --all"),
        (["add", "web1", "/web1.sock"], "`systemctl enable --now vhost-balloon@web1.socket`"),
        (["--folder", "/x", "add"], "`systemctl enable --now vhost-balloon@web1.socket`"),
        (
            ["remove", "web1"],
            "`systemctl disable --now vhost-balloon@web1.socket vhost-balloon@web1.service`",
        ),
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
    path = tmp_path / "web1.control"
    error = failure(capsys, f"--control-socket={path}", "list")
    assert error == f"{path}: no such socket: is vhost-balloon running?"
    nobody_listens(path)
    for where in (f"--control-socket={path}", f"--folder={tmp_path}"):
        error = failure(capsys, "status", "web1", where)
        assert error == f"{path}: cannot connect: nothing listens on it"


def test_paths_that_cannot_be_connected_to(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    for path in (plain, tmp_path, plain / "x", "x" * 200, tmp_path / "a\nb"):
        assert str(path).split("\n")[0] in failure(capsys, "list", f"--control-socket={path}")
    assert failure(capsys, "list", "--control-socket=")


def test_no_permission(tmp_path: Path) -> None:
    """Root may connect to any socket, so the command runs without capabilities."""
    with fake_daemons(tmp_path, {"good": answering(), "web1": answering()}):
        path = tmp_path / "web1.control"
        path.chmod(0)
        done = without_rights(f"--control-socket={path}", "list")
        text = f"vhost-balloonctl: {path}: cannot connect: Permission denied\n"
        assert (done.returncode, done.stdout, done.stderr) == (1, "", text)
        done = without_rights(f"--folder={tmp_path}", "list")
        assert (done.returncode, done.stderr) == (0, "")
        _, good, bad = done.stdout.splitlines()
        assert good.startswith("good  done ")
        assert bad == "web1  cannot connect: Permission denied"


def without_rights(*words: str) -> subprocess.CompletedProcess[str]:
    command = [*CTL, *words]
    if os.geteuid() == 0:
        command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--", *command]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 400 Bad Request\r\n", b"SSH-2.0\n", b"[]\n", b"{}\n", b"5\n", b"\xff\xfe\n",
     b'{"QMP": 1}\n', b"[" * 100_000 + b"\n", OK, b"null\n"],
)  # fmt: skip
def test_a_server_that_does_not_speak_qmp(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, said: bytes
) -> None:
    with listening(tmp_path / "s", replies(said)):
        error = failure(capsys, f"--control-socket={tmp_path}/s", "list")
    assert error == f"{tmp_path}/s: does not speak QMP: not a control socket"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"{}\n", "does not speak QMP"),
        (b'{"error": 5}\n', "does not speak QMP"),
        (b'{"error": {"class": "GenericError"}}\n', "does not speak QMP"),
        (b'{"error": {"class": "x", "desc": "no\\n\\u001b[2Jway"}}\n', "no\\n\\x1b[2Jway"),
        (b'{"error": {"class": "CommandNotFound", "desc": "no"}}\n', "no: is"),
        (b'{"error": {"class": "x", "desc": "' + b"y" * 100_000 + b'"}}\n', "y" * 500),
        (b'{"return": [{"id": "a", "x": NaN}]}\n', "does not speak QMP"),
        (b'{"return": [{"id": "a", "x": 1e999}]}\n', "does not speak QMP"),
        (b'{"return": [{"id": "a", "x": ' + b"9" * 5000 + b"}]}\n", "does not speak QMP"),
        (returned({}), "unexpected answer from the daemon (query-vms)"),
        (returned([]), "unexpected answer from the daemon (query-vms)"),
        (returned([VM, VM]), "unexpected answer from the daemon (query-vms)"),
        (returned([{"id": 1}]), "unexpected answer from the daemon (id)"),
        (returned([{}]), "unexpected answer from the daemon (query-vms)"),
        (b"", "closed the connection"),
        (b'{"return": ', "closed the connection"),
    ],
)
def test_malformed_answers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, answer: bytes, text: str
) -> None:
    with listening(tmp_path / "s", replies(GREETING, OK, answer)):
        error = failure(capsys, f"--control-socket={tmp_path}/s", "list")
    assert text in error
    assert len(error) < 1000


def test_the_daemon_goes_away(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for messages in ((b"",), (GREETING,), (GREETING, OK)):
        path = tmp_path / f"s{len(messages)}{messages[0][:1]!r}"
        with listening(path, replies(*messages)):
            error = failure(capsys, f"--control-socket={path}", "list")
        assert error == f"{path}: the daemon closed the connection"


def test_events_are_ignored_and_fragments_joined(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def serve(connection: socket.socket) -> None:
        for byte in GREETING + EVENT + OK + EVENT + EVENT + returned([VM]):
            connection.sendall(bytes([byte]))
        say_nothing(connection)

    with listening(tmp_path / "s", serve):
        assert run(capsys, f"--control-socket={tmp_path}/s", "list", "--json").json() == [VM]


def drip(connection: socket.socket) -> None:
    """Send whitespace forever, but no answer."""
    connection.sendall(GREETING + OK)
    while True:
        connection.sendall(b" ")
        time.sleep(0.02)


def events_only(connection: socket.socket) -> None:
    connection.sendall(GREETING + OK)
    while True:
        connection.sendall(EVENT)
        time.sleep(0.02)


@pytest.mark.parametrize("serve", [say_nothing, drip, events_only])
def test_a_server_that_never_answers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    serve: Serve,
) -> None:  # fmt: skip
    limit_patience(monkeypatch)
    with fake_daemons(tmp_path, {"web1": serve}):
        error = failure(capsys, "status", "web1", f"--folder={tmp_path}")
    assert error == f"{tmp_path}/web1.control: no answer within 0.3 s"


def limit_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the time limit, the default of the client's argument."""
    assert client.Client.__init__.__defaults__ == (None, client.ANSWER_SECONDS)
    monkeypatch.setattr(client.Client.__init__, "__defaults__", (None, 0.3))


def test_a_server_that_never_accepts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit_patience(monkeypatch)
    with full_backlog(tmp_path / "web1.control"):
        error = failure(capsys, "status", "web1", f"--folder={tmp_path}")
    assert error == f"{tmp_path}/web1.control: no answer within 0.3 s"


@pytest.mark.parametrize(
    "serve",
    [flood(b"", b"x" * 65536), flood(GREETING + OK, b"[" * 65536), flood(GREETING, EVENT * 1000)],
)
def test_a_server_that_sends_without_end(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, serve: Serve
) -> None:
    with fake_daemons(tmp_path, {"web1": serve}):
        error = failure(capsys, "status", "web1", f"--folder={tmp_path}")
    assert error == f"{tmp_path}/web1.control: it sent 1 MiB without answering"


def test_an_answer_may_have_a_megabyte(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    large = "x" * (link.MAX_ANSWER - 1000)
    with fake_daemons(tmp_path, {"web1": answering(large=large)}):
        done = run(capsys, "status", "web1", "--json", f"--folder={tmp_path}")
    assert done.json()["large"] == large


# set --wait


def steps(*states: dict[str, Any]) -> Serve:
    """Answer `set --wait`: query-vms, the command itself, then each of these states."""
    first, *others = [returned([VM | state]) for state in states]
    return replies(GREETING, OK, first, OK, *others)


MOVING = {"state": "moving", "target": 1 << 29, "actual": 3 << 28}


@pytest.mark.parametrize(
    ("last", "text"),
    [
        ({"state": "stuck"}, "web1 is stuck: actual 768 MiB, target 512 MiB"),
        ({"state": "out-of-memory"},
         "web1 is out of memory: actual 768 MiB, target 512 MiB"),
        ({"attached": False, "state": "disconnected"}, "web1 went away"),
        ({"front-end-pid": 99}, "web1 went away"),
        ({"target": 1 << 28}, "web1 was given another target: 256 MiB"),
        ({"target": 3 << 29, "guest-memory": 1 << 31},
         "web1 was given other memory or another target: 1.5 GiB of 2 GiB"),
    ],
)  # fmt: skip
def test_waiting_ends_when_the_target_cannot_be_reached(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, last: dict[str, Any], text: str
) -> None:
    with fake_daemons(tmp_path, {"web1": steps({}, MOVING, MOVING, MOVING | last)}):
        where = f"--folder={tmp_path}"
        assert failure(capsys, where, "set", "web1", "512M", "--wait") == text


def test_waiting_has_a_time_limit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with fake_daemons(tmp_path, {"web1": steps({}, *[MOVING] * 20)}):
        error = failure(
            capsys, f"--folder={tmp_path}", "set", "web1", "512M", "--wait", "--timeout=0.3"
        )
    assert error == (
        "web1 did not reach its target within 0.3 s: moving, actual 768 MiB, target 512 MiB"
    )


def test_the_daemon_goes_away_during_the_wait(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with fake_daemons(tmp_path, {"web1": steps({}, MOVING, MOVING)}):
        error = failure(capsys, f"--folder={tmp_path}", "set", "web1", "512M", "--wait")
    assert error == f"{tmp_path}/web1.control: the daemon closed the connection"


def test_waiting_continues_without_a_driver_and_ends_at_the_target(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The daemon rounds the target up to whole pages."""
    boot = {"state": "no-driver", "target": 1000, "guest-memory": 0, "pending": True}
    done = {"state": "done", "target": 4096, "actual": 4096}
    with fake_daemons(tmp_path, {"web1": steps({}, boot, boot, boot, done)}):
        where = f"--folder={tmp_path}"
        found = run(capsys, where, "set", "web1", "1000", "--wait", "--json", "--force").json()
    assert 0.3 < found.pop("seconds") < 10
    assert found == {
        "id": "web1", "target": 4096, "actual": 4096, "state": "done", "pending": False,
    }  # fmt: skip

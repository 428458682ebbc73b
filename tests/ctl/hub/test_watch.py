"""watch with a hub beside the VMs, and policy --watch on a terminal."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.support.ctl_command import CTL, run
from tests.support.fakes.daemons import (
    GREETING,
    OK,
    Serve,
    answering,
    fake_daemons,
    listening,
    replies,
    returned,
    say_nothing,
)
from tests.support.fakes.hub import document, hub
from tests.support.pty_session import PtySession
from vhost_balloon.ctl.hub import asking
from vhost_balloon.ctl.hub.asking import Beside
from vhost_balloon.ctl.hub.model import Policy
from vhost_balloon.ctl.options import DEFAULT_HUB_SOCKET, parse
from vhost_balloon.policy.settings import Mode

VMS = {"web1": answering(), "db1": answering()}
POLICY = "policy on: short, 1.1 GiB of 16 GiB available, reserve 2.3 GiB"


def watched(
    capsys: pytest.CaptureFixture[str], folder: Path, serve: Serve, *words: str
) -> list[str]:
    """Watch once, and return the lines without the time and the head."""
    where = (f"--folder={folder}", f"--hub-socket={folder}/hub")
    with fake_daemons(folder, VMS), listening(folder / "hub", serve):
        done = run(capsys, *where, "watch", "--count=1", *words)
    assert (done.status, done.err) == (0, "")
    return done.out.splitlines()


def test_watch_with_a_hub(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, policy, head, db1, web1 = watched(capsys, tmp_path, hub())
    assert policy.startswith(POLICY)
    assert head.endswith("  REPORTING  POLICY")
    assert (db1.split()[-1], web1.split()[-1]) == ("manual", "reclaim")
    [line] = watched(capsys, tmp_path, hub(), "--json")
    assert [vm["id"] for vm in json.loads(line)] == ["db1", "web1"]


def test_watch_shows_what_goes_back_by_order_while_the_policy_is_off(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    off = document() | {"mode": "off", "configured-mode": "off"}
    _, policy, head, *_ = watched(capsys, tmp_path, hub(off))
    assert policy.startswith("policy off: short, 1.1 GiB of 16 GiB available")
    assert head.endswith("  POLICY")


REFUSES = replies(GREETING, OK, b'{"error": {"class": "CommandNotFound", "desc": "x"}}\n')
NO_POLICY: dict[str, Serve] = {
    "off": hub(document(Mode.OFF)),
    "refuses": REFUSES,
    "odd": hub([]),
    "hangs-up": replies(b""),
    "no-qmp": replies(b"HTTP/1.1 400 Bad Request\r\n"),
    "silent": say_nothing,
}


@pytest.mark.parametrize("how", NO_POLICY)
def test_watch_without_a_policy_is_as_without_a_hub(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, how: str
) -> None:
    with fake_daemons(tmp_path, VMS):
        plain = run(capsys, f"--folder={tmp_path}", "watch", "--count=1").out.splitlines()
    assert watched(capsys, tmp_path, NO_POLICY[how])[1:] == plain[1:]
    assert len(plain) == 4


def test_the_default_hub_is_asked_only_about_the_default_folder() -> None:
    assert parse(["watch"]).hub_beside == DEFAULT_HUB_SOCKET
    assert parse(["watch", "--folder=/x"]).hub_beside is None
    assert parse(["--control-socket=/x", "watch"]).hub_beside is None
    assert parse(["--hub-socket=/y", "watch", "--folder=/x"]).hub_beside == "/y"
    assert parse(["policy", "--folder=/x"]).hub_socket == DEFAULT_HUB_SOCKET


# Beside


def until_there(beside: Beside) -> Policy:
    """Ask and take until there is a policy."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        beside.ask()
        if (policy := beside.take()) is not None:
            return policy
        time.sleep(0.01)
    raise AssertionError("no policy")


def test_a_silent_hub_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "GRACE", 1.0)
    times = []
    with listening(tmp_path / "hub", say_nothing), Beside(f"{tmp_path}/hub") as beside:
        for _ in range(20):
            started = time.monotonic()
            beside.ask()
            assert beside.take() is None
            times.append(time.monotonic() - started)
    assert times[0] >= 1.0
    assert sum(times[1:]) < 1.0


def test_a_hub_that_is_late_is_asked_once_and_heard_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if its answer takes many pieces."""
    monkeypatch.setattr(asking, "GRACE", 0.01)
    goes_on, asked = threading.Event(), []
    answer = document()
    answer["vms"] = [answer["vms"][2] | {"id": f"vm{number}"} for number in range(2000)]

    def serve(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        with connection.makefile("rb") as requests:
            for line in requests:
                is_query = b"query-policy" in line
                if is_query:
                    asked.append(line)
                    goes_on.wait(20)
                connection.sendall(returned(answer) if is_query else OK)

    with listening(tmp_path / "hub", serve), Beside(f"{tmp_path}/hub") as beside:
        for _ in range(5):
            beside.ask()
            assert beside.take() is None
        assert len(asked) <= 1
        goes_on.set()
        assert len(until_there(beside).vms) == 2000
        assert len(asked) == 1


def test_a_hub_that_comes_goes_and_comes_again(tmp_path: Path) -> None:
    with Beside(f"{tmp_path}/hub") as beside:
        for _ in range(2):
            beside.ask()
            assert beside.take() is None
            with listening(tmp_path / "hub", one_answer):
                assert until_there(beside).mode == "on"
    with Beside(None) as beside:
        beside.ask()
        assert beside.take() is None


def one_answer(connection: socket.socket) -> None:
    replies(GREETING, OK, returned(document()))(connection)


def test_what_was_last_known_is_forgotten_with_the_hub(tmp_path: Path) -> None:
    with Beside(f"{tmp_path}/hub") as beside:
        with listening(tmp_path / "hub", one_answer):
            assert until_there(beside).mode == "on"
        beside.ask()
        assert beside.take() is None


# On a terminal


def test_watch_on_a_terminal(tmp_path: Path) -> None:
    command = (*CTL, f"--folder={tmp_path}", f"--hub-socket={tmp_path}/hub", "watch")
    with (
        fake_daemons(tmp_path, VMS),
        listening(tmp_path / "hub", hub()),
        PtySession(*command, "--interval=1000", columns=140) as terminal,
    ):
        terminal.wait_for("q: quit")
        first, second, head, db1, *_ = terminal.screen()
        assert first.startswith(" 2 VMs, 2 attached")
        assert second.startswith(f" {POLICY}")
        assert head.endswith("POLICY")
        assert db1.endswith("manual")
        terminal.type("q")
        assert terminal.wait() == 0


def test_policy_watch_on_a_terminal(tmp_path: Path) -> None:
    command = (*CTL, f"--hub-socket={tmp_path}/hub", "policy", "--watch", "--interval=1000")
    answer = document()
    answer["vms"] = [answer["vms"][2] | {"id": f"vm{number}"} for number in range(9)]
    with (
        listening(tmp_path / "hub", hub(answer)),
        PtySession(*command, rows=6) as terminal,
    ):
        terminal.wait_for("1 to 3 of 9")
        first, head, vm0, *_ = terminal.screen()
        assert first.startswith(f" {POLICY}")
        assert head.startswith("VM   REASON ")
        assert vm0.startswith("vm0  reclaim ")
        terminal.type("G")
        terminal.wait_for("7 to 9 of 9")
        terminal.type("q")
        assert terminal.wait() == 0
        assert terminal.is_restored()


def test_policy_watch_goes_on_with_a_new_hub_and_ends_without_one(tmp_path: Path) -> None:
    path = tmp_path / "hub"
    command = (*CTL, f"--hub-socket={path}", "policy", "--watch", "--interval=0.05")
    with listening(path, one_answer), PtySession(*command) as terminal:
        for _ in range(3):  # each answer ends a connection
            terminal.wait_for("q: quit")
        path.rename(tmp_path / "gone")
        assert terminal.wait() == 1
        path.touch()  # what listening() removes at its end
        assert terminal.is_restored()
        error = terminal.text.rpartition("\x1b[?1049l")[2]
        assert error.startswith(f"vhost-balloonctl: no hub listens at {path}: `systemctl start ")
        assert error.count("\n") == 1

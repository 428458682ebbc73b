"""vhost-balloonctl on a terminal: the live table, the progress bar, and leaving without a trace."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pty_session import PtySession
from tests.rig.daemon import Daemon
from tests.test_ctl_errors import EVENT, GREETING, OK, VM, returned

ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    """A daemon to look at; nothing is attached."""
    with Daemon(vms=[f"vm{number}" for number in range(9)]) as one:
        yield one


def session(control: Path, *words: str, **terminal: object) -> PtySession:
    command = (sys.executable, "-m", "vhost_balloon.ctl", f"--control-socket={control}", *words)
    return PtySession(*command, **terminal)  # type: ignore[arg-type]


def assert_left(terminal: PtySession) -> None:
    """The terminal is as it was, and nothing was left on it but at most a line of an error."""
    assert terminal.is_restored()
    assert terminal.text.count(ENTER) == terminal.text.count(LEAVE)
    assert terminal.text.rindex(LEAVE) > terminal.text.rindex("vm0")
    assert terminal.text.rindex(SHOW) > terminal.text.rindex(HIDE)
    assert terminal.text.rpartition(LEAVE)[2].count("\n") <= 1


@pytest.mark.parametrize("key", ["q", "Q", "xq"])
def test_q_ends_watch(daemon: Daemon, key: str) -> None:
    with session(daemon.control, "watch") as terminal:
        terminal.wait_for("q: quit")
        assert not terminal.is_restored()
        terminal.type(key)
        assert terminal.wait() == 0
        assert_left(terminal)


def test_ctrl_c_ends_watch(daemon: Daemon) -> None:
    with session(daemon.control, "watch") as terminal:
        terminal.wait_for("q: quit")
        terminal.type("\x03")
        assert terminal.wait() == 130
        assert_left(terminal)
        assert terminal.text.endswith(LEAVE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_watch(daemon: Daemon, number: signal.Signals) -> None:
    with session(daemon.control, "watch") as terminal:
        terminal.wait_for("q: quit")
        terminal.signal(number)
        assert terminal.wait() == 128 + number
        assert_left(terminal)


def test_watch_draws_again_every_interval_and_ends_after_count(daemon: Daemon) -> None:
    with session(daemon.control, "watch", "--interval=0.1", "--count=3") as terminal:
        assert terminal.wait() == 0
        assert terminal.text.count("\x1b[H") >= 3
        assert_left(terminal)


def test_watch_follows_the_size_of_its_window(daemon: Daemon) -> None:
    """At once: not when the next look is due."""
    with session(daemon.control, "watch", "--interval=1000", columns=100, rows=20) as terminal:
        terminal.wait_for("q: quit")
        assert len(terminal.screen()) == 12
        terminal.resize(40, 6)
        terminal.wait_for("1 to 3 of 9")
        assert len(terminal.screen()) == 6
        assert max(map(len, terminal.screen())) <= 40
        terminal.type("\x1b[B")
        terminal.wait_for("2 to 4 of 9")
        terminal.type("G")
        terminal.wait_for("7 to 9 of 9")
        terminal.resize(200, 50)
        terminal.wait_for("q: quit")
        assert len(terminal.screen()) == 12
        assert "REPORTING" in terminal.screen()[1]


def test_watch_can_be_suspended(daemon: Daemon) -> None:
    """From a shell with job control: nothing could wake it up again without."""
    command = [sys.executable, "-m", "vhost_balloon.ctl", f"--control-socket={daemon.control}"]
    shell = ("bash", "--norc", "--noediting", "-i")
    with PtySession(*shell, PS1="prompt> ") as terminal:
        terminal.wait_for("prompt> ")
        terminal.type(f"{shlex.join(command)} watch --interval=1000; echo status $?\n")
        terminal.wait_for("q: quit")
        terminal.type("\x1a")
        terminal.wait_for("prompt> ")
        assert terminal.text.count(LEAVE) == 1
        assert terminal.is_restored()
        terminal.type("fg\n")
        terminal.wait_for("q: quit")
        assert not terminal.is_restored()
        terminal.type("q")
        terminal.wait_for("prompt> ")
        assert terminal.text.count(ENTER) == terminal.text.count(LEAVE) == 2
        assert terminal.is_restored()


def test_watch_without_colours(daemon: Daemon) -> None:
    with session(daemon.control, "watch", "--count=1", "--interval=0.1") as terminal:
        terminal.wait()
        assert "\x1b[7m" in terminal.text
    with session(daemon.control, "watch", "--count=1", "--interval=0.1", NO_COLOR="1") as terminal:
        terminal.wait()
        assert "m" not in {code[-1] for code in terminal.text.split("\x1b[")[1:] if code}


def test_a_dumb_terminal_gets_plain_tables(daemon: Daemon) -> None:
    with session(
        daemon.control, "watch", "--count=2", "--interval=0.1", TERM="dumb", columns=60
    ) as terminal:
        assert terminal.wait() == 0
        assert "\x1b" not in terminal.text
        assert terminal.text.count("vm8") == 2


def test_the_daemon_goes_away_under_watch() -> None:
    with Daemon(vms=["vm0"]) as daemon, session(daemon.control, "watch") as terminal:
        terminal.wait_for("q: quit")
        daemon.terminate()
        assert terminal.wait() == 1
        assert_left(terminal)
        error = terminal.text.rpartition(LEAVE)[2]
        assert "closed the connection" in error


def test_watch_in_an_old_locale_stays_readable(daemon: Daemon) -> None:
    environment = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with session(daemon.control, "watch", "--count=1", **environment) as terminal:
        terminal.wait()
        assert terminal.text.isascii()


def test_qemu_args_on_a_terminal_are_lines_to_copy(daemon: Daemon) -> None:
    with session(daemon.control, "qemu-args", "vm0", "--memory=1G", columns=40) as terminal:
        assert terminal.wait() == 0
        assert terminal.text.count(" \\\r\n") == 4


# The progress bar


class Guest:
    """A server whose VM gets nearer to its target with each look, until it has to go on."""

    def __init__(self, path: Path, states: list[dict[str, object]]) -> None:
        self.path = path
        self._states = states
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with (
            self._listener,
            self._listener.accept()[0] as client,
            client.makefile("rb") as requests,
        ):
            client.sendall(GREETING)
            for request in requests:
                if b"query-vms" in request:
                    client.sendall(EVENT + returned([VM | self._states[0]]))
                    del self._states[: len(self._states) > 1]
                else:
                    client.sendall(OK)


MOVING: dict[str, object] = {
    "state": "moving",
    "target": 1 << 29,
    "actual": 3 << 28,
    "guest-memory": 1 << 30,
}
START: dict[str, object] = {"actual": 1 << 30}


def test_the_progress_bar_is_gone_in_the_end(tmp_path: Path) -> None:
    done = MOVING | {"state": "done", "actual": 1 << 29}
    guest = Guest(tmp_path / "s", [START, MOVING, MOVING, MOVING, done])
    with session(guest.path, "set", "web1", "512M", "--wait") as terminal:
        terminal.wait_for("50%")
        terminal.wait_for("768 MiB of 512 MiB")
        assert terminal.wait() == 0
        last = terminal.text.rpartition("\r\x1b[K")[2]
        assert re.fullmatch(r"web1: 512 MiB after \d+\.\d s\r\n", last)
        assert terminal.is_restored()


def test_an_error_has_its_line_for_itself(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "s", [START, MOVING, MOVING, MOVING, MOVING | {"state": "stuck"}])
    with session(guest.path, "set", "web1", "512M", "--wait") as terminal:
        assert terminal.wait() == 1
        last = terminal.text.rpartition("\r\x1b[K")[2]
        assert last.startswith("vhost-balloonctl: web1 is stuck")
        assert last.endswith("\r\n")


def test_ctrl_c_ends_waiting(tmp_path: Path) -> None:
    guest = Guest(tmp_path / "s", [START, MOVING])
    with session(guest.path, "set", "web1", "512M", "--wait", columns=20) as terminal:
        terminal.wait_for("web1 █")
        terminal.type("\x03")
        assert terminal.wait() == 130
        assert terminal.text.endswith("\r\x1b[K")
        bars = terminal.text.replace("^C", "").split("\r\x1b[K")
        assert max(map(len, bars)) < 20  # on one line of a narrow terminal

"""vhost-balloonctl on a terminal: the live table, the progress bar, and restoring the terminal."""

from __future__ import annotations

import re
import shlex
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rig.daemon import Daemon
from tests.support.ctl_command import CTL
from tests.support.fakes.daemons import (
    EVENT,
    GREETING,
    OK,
    VM,
    Serve,
    answering,
    fake_daemons,
    returned,
    say_nothing,
)
from tests.support.pty_session import PtySession
from vhost_balloon.ctl.terminal import decode_keys

ENTER, LEAVE = "\x1b[?1049h", "\x1b[?1049l"
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Serve nine VMs without a front end."""
    path = tmp_path_factory.mktemp("run")
    idle = answering(attached=False, state="disconnected", socket_path="/run/vm.sock")
    with fake_daemons(path, {f"vm{number}": idle for number in range(9)}):
        yield path


def session(folder: Path, *words: str, **terminal: object) -> PtySession:
    return PtySession(*CTL, f"--folder={folder}", *words, **terminal)  # type: ignore[arg-type]


def assert_restored(terminal: PtySession) -> None:
    """Check that the terminal is restored, with at most one line of an error left on it."""
    assert terminal.is_restored()
    assert terminal.text.count(ENTER) == terminal.text.count(LEAVE)
    assert terminal.text.rindex(LEAVE) > terminal.text.rindex("vm0")
    assert terminal.text.rindex(SHOW) > terminal.text.rindex(HIDE)
    assert terminal.text.rpartition(LEAVE)[2].count("\n") <= 1


@pytest.mark.parametrize("key", ["q", "Q", "xq"])
def test_q_ends_watch(folder: Path, key: str) -> None:
    with session(folder, "watch") as terminal:
        terminal.wait_for("q: quit")
        assert not terminal.is_restored()
        terminal.type(key)
        assert terminal.wait() == 0
        assert_restored(terminal)


def test_ctrl_c_ends_watch(folder: Path) -> None:
    with session(folder, "watch") as terminal:
        terminal.wait_for("q: quit")
        terminal.type("\x03")
        assert terminal.wait() == 130
        assert_restored(terminal)
        assert terminal.text.endswith(LEAVE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_watch(folder: Path, number: signal.Signals) -> None:
    with session(folder, "watch") as terminal:
        terminal.wait_for("q: quit")
        terminal.signal(number)
        assert terminal.wait() == 128 + number
        assert_restored(terminal)


def test_watch_draws_again_every_interval_and_ends_after_count(folder: Path) -> None:
    with session(folder, "watch", "--interval=0.1", "--count=3") as terminal:
        assert terminal.wait() == 0
        assert terminal.text.count("\x1b[H") >= 3
        assert_restored(terminal)


def test_watch_follows_the_size_of_its_window(folder: Path) -> None:
    """It redraws immediately, not at the next update."""
    with session(folder, "watch", "--interval=1000", columns=100, rows=20) as terminal:
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


def test_watch_can_be_suspended(folder: Path) -> None:
    """This takes a shell with job control, to resume it."""
    command = [*CTL, f"--folder={folder}"]
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


def test_watch_without_colours(folder: Path) -> None:
    with session(folder, "watch", "--count=1", "--interval=0.1") as terminal:
        terminal.wait()
        assert "\x1b[7m" in terminal.text
    with session(folder, "watch", "--count=1", "--interval=0.1", NO_COLOR="1") as terminal:
        terminal.wait()
        assert "m" not in {code[-1] for code in terminal.text.split("\x1b[")[1:] if code}


def test_a_dumb_terminal_gets_plain_tables(folder: Path) -> None:
    with session(
        folder, "watch", "--count=2", "--interval=0.1", TERM="dumb", columns=60
    ) as terminal:
        assert terminal.wait() == 0
        assert "\x1b" not in terminal.text
        assert terminal.text.count("vm8") == 2


def test_the_daemon_goes_away_under_watch() -> None:
    with Daemon(name="vm0") as daemon:
        command = (*CTL, f"--control-socket={daemon.control}", "watch")
        with PtySession(*command) as terminal:
            terminal.wait_for("q: quit")
            daemon.terminate()
            assert terminal.wait() == 1
            assert_restored(terminal)
            error = terminal.text.rpartition(LEAVE)[2]
            assert error.startswith(f"vhost-balloonctl: {daemon.control}: ")


def test_vms_come_and_go_under_watch(tmp_path: Path) -> None:
    with fake_daemons(tmp_path, {"vm0": answering()}), session(tmp_path, "watch") as terminal:
        terminal.wait_for("1 VM, 1 attached")
        with fake_daemons(tmp_path, {"vm1": answering()}):
            terminal.wait_for("2 VMs, 2 attached")
            terminal.wait_for("q: quit")
            assert terminal.screen()[3].startswith("vm1  done ")
        terminal.wait_for("1 VM, 1 attached")
        terminal.type("q")
        assert terminal.wait() == 0


def test_keys_work_while_a_vm_is_silent(tmp_path: Path) -> None:
    """watch waits for that VM nearly all the time."""
    serves = {f"vm{number}": answering() for number in range(9)} | {"vm9": say_nothing}
    with (
        fake_daemons(tmp_path, serves),
        session(tmp_path, "watch", "--interval=0.01", rows=6) as terminal,
    ):
        terminal.wait_for("1 to 3 of 10")
        for first in range(2, 6):
            terminal.type("j")
            terminal.wait_for(f"{first} to {first + 2} of 10")
        terminal.type("G")
        terminal.wait_for("8 to 10 of 10")
        assert terminal.screen()[4] == "vm9  no answer within 1 s"
        terminal.type("q")
        assert terminal.wait(0.9) == 0
        assert_restored(terminal)


def test_watch_in_an_old_locale_stays_readable(folder: Path) -> None:
    environment = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    with session(folder, "watch", "--count=1", **environment) as terminal:
        terminal.wait()
        assert terminal.text.isascii()


def test_qemu_args_on_a_terminal_are_lines_to_copy(folder: Path) -> None:
    with session(folder, "qemu-args", "vm0", "--memory=1G", columns=40) as terminal:
        assert terminal.wait() == 0
        assert terminal.text.count(" \\\r\n") == 4


# The progress bar


def moving(*states: dict[str, object]) -> Serve:
    """Return a daemon whose VM has the next state at each query-vms, and stays in the last one."""

    def serve(client: socket.socket) -> None:
        left = [*states]
        client.sendall(GREETING)
        with client.makefile("rb") as requests:
            for request in requests:
                if b"query-vms" in request:
                    client.sendall(EVENT + returned([VM | left[0]]))
                    del left[: len(left) > 1]
                else:
                    client.sendall(OK)

    return serve


MOVING: dict[str, object] = {
    "state": "moving",
    "target": 1 << 29,
    "actual": 3 << 28,
    "guest-memory": 1 << 30,
}
START: dict[str, object] = {"actual": 1 << 30}


def waiting(folder: Path, **terminal: object) -> PtySession:
    return session(folder, "set", "web1", "512M", "--wait", **terminal)


def test_the_progress_bar_is_erased_at_the_end(tmp_path: Path) -> None:
    done = MOVING | {"state": "done", "actual": 1 << 29}
    serve = moving(START, MOVING, MOVING, MOVING, done)
    with fake_daemons(tmp_path, {"web1": serve}), waiting(tmp_path) as terminal:
        terminal.wait_for("50%")
        terminal.wait_for("768 MiB of 512 MiB")
        assert terminal.wait() == 0
        last = terminal.text.rpartition("\r\x1b[K")[2]
        assert re.fullmatch(r"web1: 512 MiB after \d+\.\d s\r\n", last)
        assert terminal.is_restored()


def test_an_error_replaces_the_progress_bar(tmp_path: Path) -> None:
    serve = moving(START, MOVING, MOVING, MOVING, MOVING | {"state": "stuck"})
    with fake_daemons(tmp_path, {"web1": serve}), waiting(tmp_path) as terminal:
        assert terminal.wait() == 1
        last = terminal.text.rpartition("\r\x1b[K")[2]
        assert last.startswith("vhost-balloonctl: web1 is stuck")
        assert last.endswith("\r\n")


def test_ctrl_c_ends_waiting(tmp_path: Path) -> None:
    serve = moving(START, MOVING)
    with fake_daemons(tmp_path, {"web1": serve}), waiting(tmp_path, columns=20) as terminal:
        terminal.wait_for("web1 █")
        terminal.type("\x03")
        assert terminal.wait() == 130
        assert terminal.text.endswith("\r\x1b[K")
        bars = terminal.text.replace("^C", "").split("\r\x1b[K")
        assert max(map(len, bars)) < 20  # one line of the narrow terminal


# Keys


def test_keys() -> None:
    assert decode_keys(b"q") == "q"
    assert decode_keys(b"\x1b[A\x1b[Bj\x1bOA\x1b[5~\x1b[6~\x1b[H\x1b[F") == "kjjkb gG"
    assert "q" not in decode_keys(b"\x00\xff\x1b\xc3\xa9")
    assert decode_keys(b"") == ""

"""Where the daemon may not look, the examiner does: what the guard makes of its answers."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from tests.rig.waiting import wait_until
from tests.support.fakes.daemons import listening, nobody_listens
from tests.support.helpers import PAGE
from tests.support.huge_pages import need_root
from tests.support.made_up_proc import MEMORY, PID, Proc, process_that, seen_by_nobody
from vhost_balloon.memory.pin_guard import CACHE_SECONDS, PinGuard, may_look, prospect
from vhost_balloon.memory.pins import PinState


@pytest.fixture
def socket_path(short_folder: Path) -> Path:
    return short_folder / "socket"


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path / "proc")


@contextmanager
def examiner(path: Path, line: bytes) -> Iterator[list[bytes]]:
    """Gives that answer to every question; the questions so far."""
    questions: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        while question := connection.recv(100):
            questions.append(question)
            connection.sendall(line)

    with listening(path, serve):
        yield questions


@contextmanager
def forbidden(
    monkeypatch: pytest.MonkeyPatch, number: int = errno.EACCES, call: str = "scandir"
) -> Iterator[None]:
    """Looking fails."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        yield


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.ENOENT])
@pytest.mark.parametrize("call", ["open", "scandir"])
@pytest.mark.parametrize("line", [b"free\n", b"pinned\n", b"unknown it has ended\n"])
def test_where_it_may_not_look_the_examiner_does(
    proc: Proc,
    socket_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    call: str,
    line: bytes,
) -> None:
    guard = PinGuard(PID, proc.root, examiner=socket_path)
    with examiner(socket_path, line) as questions, forbidden(monkeypatch, number, call):
        state = guard.check(MEMORY, 0.0)
        assert guard.check(MEMORY, CACHE_SECONDS / 2) is state
        guard.close()
    assert questions == [b"%d %d\n" % (PID, MEMORY)]
    assert state.value.endswith(line.split()[0].decode())
    assert guard.why == ("" if state is not PinState.UNKNOWN else f"process {PID}: it has ended")


def test_what_it_may_see_it_does_not_ask(proc: Proc, socket_path: Path) -> None:
    with examiner(socket_path, b"free\n") as questions:
        for state in (PinState.FREE, PinState.PINNED):
            guard = PinGuard(PID, proc.root, examiner=socket_path)
            assert guard.check(MEMORY, 0.0) is state
            proc.says(pinned=PAGE)
    assert questions == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ESRCH, errno.EIO])
def test_other_failures_are_not_the_examiners(
    proc: Proc, socket_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with examiner(socket_path, b"free\n") as questions, forbidden(monkeypatch, number):
        assert PinGuard(PID, proc.root, examiner=socket_path).check(MEMORY, 0.0) is PinState.UNKNOWN
    assert questions == []


def gone(_: int) -> bool:
    raise ProcessLookupError(errno.ESRCH, "")


@pytest.mark.parametrize("is_peer", [lambda _: False, gone])
def test_the_front_end_has_ended_when_the_answer_comes(
    proc: Proc,
    socket_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_peer: Callable[[int], bool],
) -> None:
    """The examiner may have looked at a later process with its PID."""
    alive = iter([True])
    guard = PinGuard(
        PID, proc.root, lambda pid: next(alive, False) or is_peer(pid), examiner=socket_path
    )
    with examiner(socket_path, b"free\n"), forbidden(monkeypatch):
        assert guard.check(MEMORY, 0.0) is PinState.UNKNOWN
        guard.close()
    assert guard.why == f"process {PID}: it has ended"


def test_without_an_examiner_the_hint_names_both_remedies(
    proc: Proc, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = PinGuard(PID, proc.root, examiner=socket_path)
    with forbidden(monkeypatch):
        assert guard.check(MEMORY, 0.0) is PinState.UNKNOWN
    assert guard.is_settled(0.0)
    assert guard.hint() == (
        "cannot determine whether the front end has memory pinned for a passed-through device "
        f"(process {PID}: it may not be examined, because it runs as another user or is protected; "
        "no examiner looks on its behalf); run vhost-balloon-examiner, which looks on the daemon's "
        "behalf, or, if no device is passed through to the guest, start the daemon with "
        "--discard=always"
    )


@pytest.mark.parametrize("line", [b"unknown it has ended\n", b"what?\n", b""])
def test_an_examiner_that_runs_is_not_asked_for(
    proc: Proc, socket_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    """It answers that it does not know, answers nonsense, or does not answer."""
    guard = PinGuard(PID, proc.root, examiner=socket_path)
    with examiner(socket_path, line), forbidden(monkeypatch):
        assert guard.check(MEMORY, 0.0) is PinState.UNKNOWN
        guard.close()
    assert guard.hint().endswith(
        "); if no device is passed through to the guest, start the daemon with --discard=always"
    )


def test_the_hint_for_another_pid_namespace_names_the_switch() -> None:
    guard = PinGuard(None)
    assert guard.check(MEMORY, 0.0) is PinState.UNKNOWN
    assert "--pid=host" in guard.hint()
    assert "--discard=always" in guard.hint()
    assert "examiner" not in guard.hint(), "it could not help"


def test_a_closed_guard_neither_looks_nor_asks(
    proc: Proc, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = PinGuard(PID, proc.root, examiner=socket_path)
    with examiner(socket_path, b"free\n") as questions, forbidden(monkeypatch):
        assert guard.check(MEMORY, 0.0) is PinState.FREE
        guard.close()
        assert guard.check(0, 100.0) is PinState.FREE
    assert len(questions) == 1


def test_the_descriptors_of_a_guard(
    proc: Proc, socket_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    guard = PinGuard(PID, proc.root, examiner=socket_path)
    with examiner(socket_path, b"free\n"), forbidden(monkeypatch):
        for now in range(100):
            guard.check(MEMORY, float(now))
        guard.close()
    assert len(os.listdir("/proc/self/fd")) == before


# What an operator is told before a front end comes


def test_who_may_look(socket_path: Path) -> None:
    need_root("A PROCESS THAT MAY LOOK")
    assert may_look(socket_path)
    assert prospect(socket_path) is None
    assert "run vhost-balloon-examiner" in prospect_of_nobody(socket_path)
    nobody_listens(socket_path)
    assert prospect_of_nobody(socket_path) == "None\n"
    socket_path.parent.chmod(0)
    assert "run vhost-balloon-examiner" in prospect_of_nobody(socket_path)


def prospect_of_nobody(socket_path: Path) -> str:
    program = (
        "import sys; from pathlib import Path; from vhost_balloon.memory.pin_guard import prospect;"
        " print(prospect(Path(sys.argv[1])))"
    )
    without = ("--bounding-set=-all", "--inh-caps=-all")
    command = ["setpriv", *without, sys.executable, "-c", program, str(socket_path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# The real examiner, on behalf of another user


def test_a_real_examiner_looks_for_a_user_who_may_not(short_folder: Path) -> None:
    need_root("ANOTHER USER'S PROCESS")
    path = short_folder / "socket"
    short_folder.chmod(0o755)
    with real_examiner(path):
        assert seen_by_nobody(os.getpid(), path) == ("free", "")
        for what in ("pin", "lock", "pass"):
            with process_that(what, MEMORY) as pid:
                assert seen_by_nobody(pid, path) == ("pinned", ""), what
        with subprocess.Popen(["true"]) as process:
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            assert seen_by_nobody(process.pid, path)[0] == "pins-unknown"
    state, why = seen_by_nobody(os.getpid(), path)
    assert state == "pins-unknown"
    assert "no examiner looks on its behalf" in why


@contextmanager
def real_examiner(path: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "vhost_balloon.examiner", f"--socket-path={path}"]
    with subprocess.Popen(command) as process:
        wait_until(path.is_socket, 20)
        yield
        process.terminate()
    assert process.returncode == 0
    assert not path.exists()

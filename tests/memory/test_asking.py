"""Asking the examiner: one that answers, and ones that are absent, late, dead, hung or lying."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protocol.examiner import MAX_ANSWER, answer
from tests.support.fakes.daemons import Serve, full_backlog, listening, nobody_listens
from vhost_balloon.memory.asking import KEPT, LEAST_PATIENCE, PATIENCE, START_SECONDS, Examiner
from vhost_balloon.memory.pins import PinState

SIZE = 1 << 30
FREE, PINNED = (PinState.FREE, ""), (PinState.PINNED, "")
BOUND = 10 * PATIENCE
"""Seconds that nothing may take, on a machine with much else to do."""


@pytest.fixture
def path(short_folder: Path) -> Path:
    return short_folder / "socket"


@contextmanager
def asking(path: Path) -> Iterator[Callable[..., tuple[PinState, str] | None]]:
    """Asks about process 7 at a time, in seconds."""
    examiner = Examiner(path)
    try:
        yield lambda now, size=SIZE: examiner.ask(7, size, now, 1.0)
    finally:
        examiner.close()


def saying(*answers: bytes) -> Serve:
    """Gives one answer to each question of a connection, then closes it."""

    def serve(connection: socket.socket) -> None:
        for each in answers:
            if not connection.recv(100):
                return
            connection.sendall(each)

    return serve


class Held:
    """An examiner that answers only when it is told to."""

    def __init__(self) -> None:
        self.questions = 0
        self._asked, self._told = threading.Semaphore(0), threading.Semaphore(0)

    def serve(self, connection: socket.socket) -> None:
        while connection.recv(100):
            self.questions += 1
            self._asked.release()
            self._told.acquire()
            connection.sendall(answer("free"))

    def tell(self) -> None:
        """Answer the question that has been asked."""
        assert self._asked.acquire(timeout=10)
        self._told.release()


def test_answers(path: Path) -> None:
    lines = (answer("free"), answer("pinned"), answer("unknown", "it has ended"))
    with listening(path, saying(*lines)), asking(path) as ask:
        assert ask(0) == FREE
        assert ask(0.9) == FREE, "asked again too early"
        assert ask(1) == PINNED
        assert ask(2) == (PinState.UNKNOWN, "it has ended")


def test_another_size_is_another_question(path: Path) -> None:
    with listening(path, saying(answer("free"), answer("pinned"))), asking(path) as ask:
        assert ask(0, 0) == FREE
        assert ask(0, SIZE) == PINNED


def test_an_answer_in_parts(path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(100)
        for byte in answer("pinned"):
            connection.sendall(bytes([byte]))

    with listening(path, serve), asking(path) as ask:
        assert ask(0) == PINNED


def test_without_an_examiner(path: Path) -> None:
    examiner = Examiner(path)
    for exists in (False, True):
        if exists:
            nobody_listens(path)
        assert examiner.ask(7, SIZE, 0.0, 1.0) is None
        assert examiner.trouble == "no examiner looks on its behalf"
        assert not examiner.is_late()
    assert Examiner(path / "x" / ("y" * 200)).ask(7, SIZE, 0.0, 1.0) is None


def test_one_that_is_started_later(path: Path) -> None:
    with asking(path) as ask:
        assert ask(0) is None
        with listening(path, saying(answer("free"))):
            assert ask(0) == FREE


def test_one_that_is_started_anew(path: Path) -> None:
    """The question that finds the connection closed opens another."""
    with asking(path) as ask:
        for now in (0, 10, 20):
            with listening(path, saying(answer("free"))):
                assert ask(now) == FREE
            path.unlink(missing_ok=True)


def test_one_that_dies_over_a_question(path: Path) -> None:
    with listening(path, saying(answer("free"), b"")), asking(path) as ask:
        assert ask(0) == FREE
        assert ask(1) == FREE, "the last answer counts for some time"
        assert ask(1) == FREE, "and the next one is asked"
        assert ask(5) in (None, FREE)


@pytest.mark.parametrize(
    "line",
    [b"\n", b"perhaps\n", b"free\nfree\n", b"unknown\n", b"unknown \x1b[2J\n", b"\xff" * 1000,
     b"f" * MAX_ANSWER, b"f" * (MAX_ANSWER - 1) + b"\n"],
)  # fmt: skip
def test_one_that_talks_nonsense(path: Path, line: bytes) -> None:
    examiner = Examiner(path)
    with listening(path, saying(line)):
        assert examiner.ask(7, SIZE, 0.0, 1.0) is None
        assert examiner.trouble.startswith("the examiner answers nonsense")
        assert not examiner.is_late()
    examiner.close()


def test_one_that_hangs_is_waited_for_once(path: Path) -> None:
    with full_backlog(path), asking(path) as ask:
        began = time.monotonic()
        assert all(ask(now) is None for now in range(100))
        assert time.monotonic() - began < BOUND
    path.unlink(missing_ok=True)
    held = Held()
    with listening(path, held.serve), asking(path) as ask:
        began = time.monotonic()
        assert all(ask(now) is None for now in range(1000))
        assert PATIENCE <= time.monotonic() - began < BOUND
        assert held.questions == 1
        held.tell()


def test_an_answer_that_comes_late(path: Path) -> None:
    held = Held()
    examiner = Examiner(path)
    with listening(path, held.serve):
        assert examiner.ask(7, SIZE, 0.0, 1.0) is None
        assert examiner.trouble == "the examiner (vhost-balloon-examiner) has not answered yet"
        assert examiner.is_late()
        assert examiner.is_starting(START_SECONDS - 0.1)
        assert not examiner.is_starting(START_SECONDS)
        held.tell()
        while examiner.ask(7, SIZE, 0.5, 1.0) is None:
            pass
        # It is as old as its question.
        assert examiner.ask(7, SIZE, KEPT - 0.1, 1.0) == FREE
        assert examiner.is_late()
        assert not examiner.is_starting(KEPT - 0.1), "the first answer has come"
        assert examiner.ask(7, SIZE, KEPT, 1.0) is None
        held.tell()
        while examiner.is_late():
            examiner.ask(7, SIZE, KEPT, 1.0)
        # Too old to count by the time that it is read, and asked again.
        assert examiner.ask(7, SIZE, 100.0, 1.0) is None
        assert held.questions >= 2
        examiner.close()
        held.tell()


def test_one_that_is_always_late_is_waited_for_less_and_less(path: Path) -> None:
    held = Held()
    with listening(path, held.serve), asking(path) as ask:
        began, waited = time.monotonic(), 0.0
        for now in range(0, 100, 10):
            began = time.monotonic()
            ask(now)
            waited += time.monotonic() - began
            held.tell()
            while ask(now) is None:
                pass
        assert waited < 2 * PATIENCE + 10 * 10 * LEAST_PATIENCE


def test_closing_closes_everything(path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    with listening(path, saying(answer("free"))), asking(path) as ask:
        assert ask(0) == FREE
    assert os.listdir("/proc/self/fd") == before

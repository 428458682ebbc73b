"""The examiner: what it answers, and what its clients cannot do to it or to each other."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.lowlevel
import trio.testing

from protocol.examiner import MAX_ANSWER, answer, question
from tests.support.helpers import PAGE
from tests.support.hostile.bad_questions import BAD_QUESTIONS
from tests.support.huge_pages import need_root
from tests.support.made_up_proc import MEMORY, PID, Proc
from vhost_balloon.containment import InternalErrors
from vhost_balloon.examiner import server
from vhost_balloon.examiner.server import ExaminerServer

ASK = question(PID, MEMORY)
FREE = answer("free")


class Served:
    """A running examiner that looks into a made-up /proc."""

    def __init__(self, proc: Proc, path: str, errors: InternalErrors) -> None:
        self.proc = proc
        self.path = path
        self.errors = errors

    async def connect(self) -> trio.SocketStream:
        return await trio.open_unix_socket(self.path)


async def asked(stream: trio.SocketStream, line: bytes = ASK) -> bytes:
    """The answer to a line; b"" if the connection is closed instead."""
    try:
        await stream.send_all(line)
        return bytes(await stream.receive_some(MAX_ANSWER))
    except trio.BrokenResourceError:
        return b""


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Served]:
    with socket.socket(socket.AF_UNIX) as sock:
        path = f"{folder}/sock"
        sock.bind(path)
        sock.listen(100)
        errors = InternalErrors(("client",))
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        proc = Proc(folder / "proc")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ExaminerServer(errors, proc.root).run, listener)
            yield Served(proc, path, errors)
            nursery.cancel_scope.cancel()
    assert errors.counts["client"] == 0


# Answers


async def test_the_three_words(short_folder: Path) -> None:
    async with serving(short_folder) as served, await served.connect() as stream:
        assert await asked(stream) == FREE
        served.proc.says(pinned=PAGE)
        assert await asked(stream) == b"pinned\n"
        served.proc.says(locked=MEMORY)
        assert await asked(stream) == b"pinned\n"
        assert await asked(stream, question(PID, MEMORY + PAGE)) == FREE
        assert (await asked(stream, question(PID + 1, MEMORY))).startswith(b"unknown it has ended")
        served.proc.says()
        served.proc.holds("/dev/vfio/12")
        assert await asked(stream) == b"pinned\n"


@pytest.mark.parametrize("line", [*filter(None, BAD_QUESTIONS), b"x" * 1000])
async def test_nonsense_is_answered(short_folder: Path, line: bytes) -> None:
    async with serving(short_folder) as served, await served.connect() as other:
        async with await served.connect() as stream:
            if line.endswith(b"\n") or len(line) > 100:
                assert (await asked(stream, line)).startswith(b"unknown the question is not")
            else:
                await stream.send_all(line)
        assert await asked(other) == FREE


async def test_a_question_in_parts(short_folder: Path) -> None:
    async with serving(short_folder) as served, await served.connect() as stream:
        for byte in ASK[:-1]:
            await stream.send_all(bytes([byte]))
            await trio.lowlevel.checkpoint()
        assert await asked(stream, ASK[-1:]) == FREE


async def test_nothing_but_the_process_is_opened(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    open_file = os.open

    def watched(path: str | Path, *arguments: int, dir_fd: int | None = None) -> int:
        opened.append(path)
        return open_file(path, *arguments, dir_fd=dir_fd)

    async with serving(short_folder) as served, await served.connect() as stream:
        monkeypatch.setattr(os, "open", watched)
        assert await asked(stream) == FREE
    assert opened == [served.proc.folder, "status", "fd", "status"]


async def test_a_client_in_another_pid_namespace(tmp_path: Path, short_folder: Path) -> None:
    """It means another process by a PID."""
    need_root("ANOTHER PID NAMESPACE")
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); "
        f"s.send({ASK!r}); print(s.recv(300).decode(), end='')"
    )
    async with serving(short_folder) as served:
        for unshare, expected in (
            ([], FREE),
            (["unshare", "--pid", "--fork"], b"unknown the daemon is in another PID namespace"),
        ):
            command = [*unshare, sys.executable, "-c", program, served.path]
            done = await trio.run_process(command, capture_stdout=True)
            assert done.stdout.startswith(expected)


# What clients cannot do


async def test_descriptors_are_not_taken(short_folder: Path) -> None:
    async with serving(short_folder) as served, await served.connect() as stream:
        assert await asked(stream) == FREE
        before = os.listdir("/proc/self/fd")
        try:
            socket.send_fds(stream.socket._sock, [ASK], [0, 1, 2])  # type: ignore[attr-defined]
        except PermissionError:  # since Linux 6.16
            assert await asked(stream) == FREE
        else:
            assert await stream.receive_some() == FREE
        assert os.listdir("/proc/self/fd") == before


async def test_clients_come_and_go(short_folder: Path) -> None:
    before = os.listdir("/proc/self/fd")
    async with serving(short_folder) as served:
        for line in (b"", b"1", ASK) * 50:
            async with await served.connect() as stream:
                await stream.send_all(line)
        async with await served.connect() as stream:
            assert await asked(stream) == FREE
    assert os.listdir("/proc/self/fd") == before


async def test_a_user_gets_a_limited_number_of_connections(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CLIENTS_OF_USER", 3)
    user = as_user(monkeypatch)
    async with serving(short_folder) as served:
        streams = [await served.connect() for _ in range(5)]
        found = [await asked(stream) for stream in streams]
        assert found == [FREE] * 3 + [b""] * 2
        user(7)
        other = await served.connect()
        assert await asked(other) == FREE
        user(os.getuid())
        await streams[0].aclose()
        await trio.testing.wait_all_tasks_blocked()
        again = await served.connect()
        assert await asked(again) == FREE
        for stream in (*streams, other, again):
            await stream.aclose()


async def test_all_users_together_get_a_limited_number(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CLIENTS", 3)
    user = as_user(monkeypatch)
    async with serving(short_folder) as served:
        streams = []
        for uid in range(5):
            user(uid)
            streams.append(await served.connect())
            assert await asked(streams[-1]) == (FREE if uid < 3 else b"")
        for stream in streams:
            await stream.aclose()


def as_user(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Returns a function that sets the user as whom clients are seen."""
    uid = os.getuid()

    def be(number: int) -> None:
        nonlocal uid
        uid = number

    monkeypatch.setattr(server, "_peer", lambda _: (os.getpid(), uid))
    return be


async def test_a_client_that_asks_nothing_for_long_is_answered_then(
    short_folder: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(short_folder) as served, await served.connect() as stream:
        for sent in (0, 5):
            await stream.send_all(ASK[:sent])
            await trio.sleep(80_000)
            assert await asked(stream, ASK[sent:]) == FREE


async def test_a_client_that_reads_no_answers_is_closed(
    short_folder: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async def ask_on(stream: trio.SocketStream, other: trio.SocketStream) -> None:
        while True:
            await stream.send_all(ASK)
            assert await asked(other) == FREE

    async with serving(short_folder) as served, await served.connect() as other:
        stream = await served.connect()
        with pytest.raises(trio.BrokenResourceError):
            await ask_on(stream, other)
        await stream.aclose()


async def test_a_users_costly_questions_do_not_delay_anothers(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Each seems to take one second of looking."""
    seconds = iter(range(1000))
    user = as_user(monkeypatch)
    async with serving(short_folder) as served:
        streams = [await served.connect() for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked()
        user(7)
        other = await served.connect()
        await trio.testing.wait_all_tasks_blocked()
        monkeypatch.setattr("time.perf_counter", lambda: float(next(seconds)))
        began = trio.current_time()
        assert await asked(streams[0]) == FREE
        assert trio.current_time() == began
        assert await asked(other) == FREE
        assert trio.current_time() == began
        assert await asked(streams[1]) == FREE
        assert trio.current_time() == began + server.SHARE - 1
        for stream in (*streams, other):
            await stream.aclose()


async def test_a_bug_in_serving_a_client_ends_that_client(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError

    async with serving(short_folder) as served, await served.connect() as other:
        assert await asked(other) == FREE
        with monkeypatch.context() as patch:
            patch.setattr(server, "_peer", broken)
            async with await served.connect() as stream:
                assert await asked(stream) == b""
        assert await asked(other) == FREE
        assert served.errors.counts.pop("client") == 1

"""Answers questions about processes (protocol/examiner.py), and opens nothing but /proc/PID.

Those who ask may be daemons that their guests have taken over. No one of them can end the examiner,
or keep it from answering the others: connections are limited by user, and each user gets a limited
share of the time.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from protocol import examiner as wire
from vhost_balloon.containment import InternalErrors
from vhost_balloon.fds import SHORTAGE, OwnedFd
from vhost_balloon.log.lines import Shortage
from vhost_balloon.memory.pins import PinState, hindrance, look

MAX_CLIENTS: Final = 4096
MAX_CLIENTS_OF_USER: Final = 1024
"""Connections at a time, some 5 KiB each; a daemon has one. Further ones are closed. An idle one
stays: to connect anew takes long while somebody else keeps the backlog full."""

REPLY_SECONDS: Final = 1.0
"""How long a client may take to read an answer."""
SHARE: Final = 10
"""A user gets at most one part in SHARE of the time that the examiner spends on looking."""
ACCEPT_PAUSE: Final = 0.1
"""Seconds to wait when short of descriptors or memory."""

SO_PASSRIGHTS: Final = 83
"""include/uapi/asm-generic/socket.h, since Linux 6.16; the socket module lacks it."""

_WORDS: Final = {PinState.FREE: wire.FREE, PinState.PINNED: wire.PINNED}
_OTHER_NAMESPACE: Final = "the daemon is in another PID namespace than the examiner"


class _User:
    """A user's connections. turn: held while one of its questions is answered."""

    def __init__(self) -> None:
        self.clients = 0
        self.turn: Final = trio.Lock()


class ExaminerServer:
    """Serves all clients of a listener."""

    def __init__(self, errors: InternalErrors, proc: Path = Path("/proc")) -> None:
        """errors: counts failures in "client"."""
        self._errors = errors
        self._proc = proc
        self._users: dict[int, _User] = {}
        self._clients = 0
        self._shortage: Final = Shortage()

    async def run(self, listener: trio.SocketListener) -> None:
        """Serve until cancelled."""
        refuse_descriptors(listener.socket)
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    if error.errno not in SHORTAGE:
                        raise
                    self._shortage.met(error, "a client")
                    await trio.sleep(ACCEPT_PAUSE)
                else:
                    nursery.start_soon(self._client, stream)

    async def _client(self, stream: trio.SocketStream) -> None:
        async with stream:
            with self._errors.contained("client"):
                pid, uid = _peer(stream)
                with self._admitted(uid) as user:
                    if user is not None:
                        await self._serve(stream, user, _refusal(pid))

    @contextmanager
    def _admitted(self, uid: int) -> Iterator[_User | None]:
        """Count a connection; None if there are too many."""
        user = self._users.setdefault(uid, _User())
        user.clients += 1
        self._clients += 1
        try:
            too_many = user.clients > MAX_CLIENTS_OF_USER or self._clients > MAX_CLIENTS
            yield None if too_many else user
        finally:
            self._clients -= 1
            user.clients -= 1
            if not user.clients:
                del self._users[uid]

    async def _serve(self, stream: trio.SocketStream, user: _User, refusal: bytes | None) -> None:
        """Answer a client until it has gone, or does not read its answers."""
        with suppress(trio.BrokenResourceError, trio.TooSlowError):
            while (line := await _receive(stream)) is not None:
                async with user.turn:
                    began = time.perf_counter()
                    answer = refusal or self._answer(line)
                    spent = time.perf_counter() - began
                    with trio.fail_after(REPLY_SECONDS):
                        await stream.send_all(answer)
                    await trio.sleep((SHARE - 1) * spent)

    def _answer(self, line: bytes) -> bytes:
        try:
            pid, memory_size = wire.read_question(line)
            folder = OwnedFd(os.open(self._proc / str(pid), os.O_PATH | os.O_DIRECTORY))
            with closing(folder):
                return wire.answer(_WORDS[look(folder.fileno(), memory_size)])
        except (OSError, ValueError) as error:
            return wire.answer(wire.UNKNOWN, hindrance(error))


def _refusal(pid: int) -> bytes | None:
    """The answer to all questions of a client to whom PIDs mean other processes, or None.

    pid: the client's, 0 if it has none here.
    """
    try:
        ours, theirs = (os.stat(f"/proc/{each}/ns/pid") for each in ("self", pid))
    except OSError as error:
        return wire.answer(wire.UNKNOWN, f"its PID namespace is not known: {hindrance(error)}")
    if (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino):
        return None
    return wire.answer(wire.UNKNOWN, _OTHER_NAMESPACE)


def refuse_descriptors(sock: trio.socket.SocketType) -> None:
    """Have the kernel refuse messages with descriptors.

    Before Linux 6.16 it takes them, and drops them when the message is received without them.
    """
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
    except OSError:
        return


def _peer(stream: trio.SocketStream) -> tuple[int, int]:
    """PID and user of the process that connected (SO_PEERCRED, unix(7))."""
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid = (int.from_bytes(credentials[at : at + 4], "little") for at in (0, 4))
    return pid, uid


async def _receive(stream: trio.SocketStream) -> bytes | None:
    """A line, or what is no question; None once the client has gone."""
    line = b""
    while not line.endswith(b"\n") and len(line) < wire.MAX_QUESTION:
        data = await stream.receive_some(wire.MAX_QUESTION - len(line))
        if not data:
            return None
        line += data
    return line

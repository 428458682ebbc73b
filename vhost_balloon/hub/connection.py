"""A connection to a VM's control socket; whatever the other side does costs little.

An answer is bounded in bytes and messages. The messages of a longer one than usual are parsed one
at a time, and only one connection does so in each round of the event loop. So any number of long
answers leaves time for short ones. The caller limits how long an answer may take.
"""

from __future__ import annotations

import os
import socket
from typing import Any, Final, Self

import trio

from protocol import qmp
from vhost_balloon.fds import OwnedFd

MAX_ANSWER: Final = 256 << 10
"""Bytes of everything that is read for one answer: a VM with 500 regions of memory takes 50 KiB."""
MAX_MESSAGES: Final = 500
"""Of one answer, with the events before it: the kernel holds some 280 small ones."""
RECEIVE_SIZE: Final = 16 << 10
"""Bytes: no more than these are kept behind an answer until the next."""
USUAL: Final = 32 << 10
"""Bytes of messages that are parsed as they come; each message counts MESSAGE_COST bytes more."""
MESSAGE_COST: Final = 256

_NEGOTIATION: Final = b'{"execute": "qmp_capabilities"}\n'
_QUERY: Final = b'{"execute": "query-vms"}\n'


class Unanswered(Exception):
    """The VM's daemon did not give the answer that was asked for; the text says why."""


class Ended(Unanswered):
    """It closed the connection."""


class Connection:
    """A negotiated QMP connection, once query() has succeeded. It is to be closed."""

    def __init__(self, sock: trio.socket.SocketType, turn: trio.Lock) -> None:
        self._socket = sock
        self._turn = turn
        self._buffer = bytearray()
        self._negotiated = False

    @classmethod
    def open(cls, path: str, turn: trio.Lock) -> Self:
        """Connect to the socket file at path, of any length. Never waits. Raises OSError.

        turn: of all connections.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            file = OwnedFd(os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
            try:
                sock.connect(f"/proc/self/fd/{file.fileno()}")
            finally:
                file.close()
        except BaseException:
            sock.close()
            raise
        return cls(trio.socket.from_stdlib_socket(sock), turn)

    def close(self) -> None:
        self._socket.close()

    async def query(self) -> Any:
        """What query-vms returns, any JSON value. Raises Unanswered or OSError."""
        # All in one go: greeting and replies come in this order.
        await self._send(_QUERY if self._negotiated else _NEGOTIATION + _QUERY)
        messages = _Messages(self._socket, self._buffer, self._turn)
        if not self._negotiated:
            if not isinstance((await messages.next()).get("QMP"), dict):
                raise Unanswered("it does not speak QMP")
            await messages.reply()
            self._negotiated = True
        return await messages.reply()

    async def _send(self, data: bytes) -> None:
        while data:
            data = data[await self._socket.send(data) :]


class _Messages:
    """Reads the messages of one answer; buffer has what was read before, and keeps the rest."""

    def __init__(self, sock: trio.socket.SocketType, buffer: bytearray, turn: trio.Lock) -> None:
        self._socket = sock
        self._turn = turn
        self._cost = 0
        self._buffer = buffer
        self._bytes_left = MAX_ANSWER - len(buffer)
        self._messages_left = MAX_MESSAGES

    async def reply(self) -> Any:
        """The value of the next reply. Events before it are skipped."""
        while "event" in (message := await self.next()):
            pass
        if "return" not in message:
            raise Unanswered("it refused the command")
        return message["return"]

    async def next(self) -> dict[str, Any]:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            self._buffer += await self._receive()
        line = self._buffer[:end]
        del self._buffer[: end + 1]
        self._messages_left -= 1
        if self._messages_left < 0:
            raise Unanswered(f"more than {MAX_MESSAGES} messages instead of an answer")
        self._cost += end + MESSAGE_COST
        if self._cost > USUAL:
            async with self._turn:
                await trio.lowlevel.checkpoint()
                return _parse(line)
        return _parse(line)

    async def _receive(self) -> bytes:
        data = await self._socket.recv(RECEIVE_SIZE)
        if not data:
            raise Ended("it closed the connection")
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            raise Unanswered(f"an answer of more than {MAX_ANSWER >> 10} KiB")
        return data


def _parse(line: bytearray) -> dict[str, Any]:
    try:
        message = qmp.load(line.decode())
    except (ValueError, RecursionError):
        raise Unanswered("what it sends is no JSON") from None
    if not isinstance(message, dict):
        raise Unanswered("what it sends is no QMP")
    return message

"""A connection to a VM's control socket that a hostile daemon cannot make expensive.

Answers are limited in bytes and messages. The messages of an unusually long answer are parsed one
at a time, and by only one connection in each pass of the event loop, so any number of long answers
leaves time for short ones. The caller limits the time. ctl/link.py does not fit here: it is
synchronous, and parses whatever the one daemon sends that its user waits for.
"""

from __future__ import annotations

import os
import socket
from typing import Any, Final, Self

import trio

from protocol import qmp
from protocol.qmp import ErrorClass, Object
from vhost_balloon.fds import OwnedFd
from vhost_balloon.printable import printable

MAX_ANSWER: Final = 256 << 10
"""Bytes that are read for one answer; a VM with 500 memory regions needs 50 KiB."""
MAX_MESSAGES: Final = 500
"""In one answer, including events before it; the kernel buffers some 280 small ones."""
RECEIVE_SIZE: Final = 16 << 10
"""Bytes: the most that can be left over after an answer."""
USUAL: Final = 32 << 10
"""Bytes of an answer that are parsed without waiting for the turn; each message counts
MESSAGE_COST bytes more."""
MESSAGE_COST: Final = 256

UNEXPECTED: Final = "is unexpected"
"""The end of QMP's error for an argument that a command does not have."""
MAX_REFUSAL: Final = 200
"""Characters of an error's text that are kept."""

_NEGOTIATION: Final = b'{"execute": "qmp_capabilities"}\n'


class Unanswered(Exception):
    """The VM's daemon did not give a proper answer; the text says why."""


class Ended(Unanswered):
    """The daemon closed the connection."""


class Refused(Unanswered):
    """The daemon's reply is an error; reason: its text, which the daemon chose, made printable.
    is_unknown: it does not know the command or an argument, as an older daemon does not."""

    def __init__(self, reason: str, *, is_unknown: bool = False) -> None:
        super().__init__(f"it refuses the command: {reason}")
        self.reason: Final = reason
        self.is_unknown: Final = is_unknown


class Connection:
    """A QMP connection, negotiated by the first execute(). The caller closes it."""

    def __init__(self, sock: trio.socket.SocketType, turn: trio.Lock) -> None:
        self._socket = sock
        self._turn = turn
        self._buffer = bytearray()
        self._negotiated = False

    @classmethod
    def open(cls, path: str, turn: trio.Lock) -> Self:
        """Connect to the socket file at path, which may be of any length. Never waits.

        turn: shared by all connections; held to parse a long answer. Raises OSError.
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

    async def execute(self, command: str, arguments: Object | None = None) -> Any:
        """The result of a command, any JSON value. Do not call it again before it returns.

        Raises Refused, after which the connection can be used, any other Unanswered, or OSError.
        """
        request = qmp.encode({"execute": command, "arguments": arguments or {}})
        # Sent together: greeting and replies arrive in this order.
        await self._send(request if self._negotiated else _NEGOTIATION + request)
        messages = _Messages(self._socket, self._buffer, self._turn)
        if not self._negotiated:
            if not isinstance((await messages.next()).get("QMP"), dict):
                raise Unanswered("it does not speak QMP")
            try:
                await messages.reply()
            except Refused as error:  # the command's reply is still to come
                raise Unanswered(str(error)) from None
            self._negotiated = True
        return await messages.reply()

    async def _send(self, data: bytes) -> None:
        while data:
            data = data[await self._socket.send(data) :]


class _Messages:
    """Reads the messages of one answer; buffer holds data read earlier, and keeps the rest."""

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
            raise _refused(message)
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
            raise Unanswered(f"it sends more than {MAX_MESSAGES} messages instead of an answer")
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
            raise Unanswered(f"its answer is longer than {MAX_ANSWER >> 10} KiB")
        return data


def _refused(message: dict[str, Any]) -> Refused:
    error = message.get("error")
    if not isinstance(error, dict) or not isinstance(text := error.get("desc"), str):
        return Refused("without a reason")
    is_unknown = error.get("class") == ErrorClass.COMMAND_NOT_FOUND.value or text.endswith(
        UNEXPECTED
    )
    return Refused(printable(text[:MAX_REFUSAL]), is_unknown=is_unknown)


def _parse(line: bytearray) -> dict[str, Any]:
    try:
        message = qmp.load(line.decode())
    except (ValueError, RecursionError):
        raise Unanswered("it sends invalid JSON") from None
    if not isinstance(message, dict):
        raise Unanswered("it does not speak QMP")
    return message

"""Exactly one vhost-user message, with its descriptors, at a time. Knows SCM_RIGHTS.

One recvmsg reads the header alone and the next the payload alone: a larger read would merge a
message without descriptors with the next one that has some.
"""

from __future__ import annotations

import array
import socket
from typing import Final

import trio

from protocol.vhost_user import (
    HEADER,
    HEADER_SIZE,
    MAX_FDS,
    MAX_PAYLOAD_SIZE,
    REPLY_FLAGS,
    VERSION,
    VERSION_MASK,
    HeaderFlag,
)
from vhost_balloon.errors import FrontEndError, StreamError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.message import Message

_ANCILLARY: Final = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
_RECEIVE_FLAGS: Final = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
_SEND_FLAGS: Final = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT
_FLAG_BITS: Final = int(VERSION_MASK | HeaderFlag.REPLY | HeaderFlag.NEED_REPLY)


class _Reader:
    """Collects the bytes and all descriptors of one message."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.fds: list[OwnedFd] = []
        self.fds_lost = False

    def some(self, size: int) -> bytes:
        """At most size bytes, or none at the stream's end. Raises BlockingIOError."""
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(size, _ANCILLARY, _RECEIVE_FLAGS)
        except ConnectionResetError:
            return b""
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                self.fds += [OwnedFd(number) for number in numbers]
        if flags & socket.MSG_CTRUNC:
            self.fds_lost = True
        return data

    async def exactly(self, size: int, *, keep: bool = True) -> bytes:
        """All size bytes, or none of them with keep=False. Raises StreamError at the end."""
        parts = []
        while size:
            try:
                part = self.some(min(size, MAX_PAYLOAD_SIZE))
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            if not part:
                raise StreamError("connection ended inside a message")
            size -= len(part)
            if keep:
                parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class Transport:
    """One connected front-end socket, taken over from stream.

    A guest waits, with QEMU's lock held, for the answer to each message. So there is one pass
    through the event loop a message: the socket itself is read and written, without a turn for
    others between header, payload and reply, as trio's own streams would give.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._sock = socket.socket(fileno=stream.socket.detach())
        self.waiting_since: float | None = trio.current_time()
        """Since when bytes are missing that must come: of the first message, or of one begun."""

    def peer_pid(self) -> int | None:
        """The process that connected, by SO_PEERCRED; None if it is not in our namespace."""
        credentials = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(credentials[:4], "little") or None

    async def receive(self) -> Message | None:
        """The next message, or None at the end of the stream.

        Raises StreamError where what comes is no vhost-user message or ends inside one.
        """
        reader = _Reader(self._sock)
        try:
            await trio.lowlevel.wait_readable(self._sock)
            header = await self._first(reader)
            if not header:
                return None
            return await self._rest(reader, header)
        except BaseException:
            for fd in reader.fds:
                fd.close()
            raise

    async def _first(self, reader: _Reader) -> bytes:
        """What of the next header has come, at least a byte, or none at the stream's end."""
        while True:
            try:
                return reader.some(HEADER_SIZE)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)

    async def _rest(self, reader: _Reader, header: bytes) -> Message:
        self.waiting_since = trio.current_time()
        if len(header) < HEADER_SIZE:
            header += await reader.exactly(HEADER_SIZE - len(header))
        request, flags, size = HEADER.unpack(header)
        if flags & VERSION_MASK != VERSION or flags & ~_FLAG_BITS:
            raise StreamError(f"header flags {flags:#x} are not vhost-user's")
        oversized = size > MAX_PAYLOAD_SIZE
        payload = await reader.exactly(size, keep=not oversized) if size else b""
        self.waiting_since = None
        return Message(request, flags, payload, reader.fds, oversized, reader.fds_lost)

    async def reply(self, request: int, payload: bytes) -> None:
        """Send a reply. Raises ConnectionError if the front end is gone."""
        left = HEADER.pack(request, REPLY_FLAGS, len(payload)) + payload
        while left:
            try:
                left = left[self._sock.send(left, _SEND_FLAGS) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)

    def close(self) -> None:
        self._sock.close()


class BackendChannel:
    """The socket for requests of ours to the front end.

    Its file description is the front end's too, so it stays as it is, blocking or not.
    Raises FrontEndError if the descriptor is no socket.
    """

    def __init__(self, fd: OwnedFd) -> None:
        try:
            self._sock = socket.socket(fileno=fd.fileno())
        except OSError:
            raise FrontEndError("descriptor is not a socket") from None
        fd.detach()

    def send(self, request: int) -> bool:
        """Send a request without payload and without waiting for an answer.

        True if the front end has it, or has at least as many requests waiting there unread as
        the socket holds; False if it has closed its end.
        """
        message = HEADER.pack(request, VERSION, 0)
        try:
            self._sock.send(message, _SEND_FLAGS)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def close(self) -> None:
        self._sock.close()

"""Receives vhost-user messages one at a time, with their descriptors (SCM_RIGHTS).

A message is looked at as a whole before it is taken from the socket, so that a process that dies
at any moment leaves it in the socket or in the journal (vhost_balloon.store.journal). Its descriptors are
put on the shelf (vhost_balloon.store.shelf) in between, before anything else is done with them.

- Peeking stops behind the first bytes that carry descriptors. What never lies in the socket as a
  whole, because a front end sends it in parts, is taken part by part (vhost_balloon.front_end.partial).
- What was peeked at is taken without room for descriptors: it would install each a second time.
  Whether any came with the bytes that are taken is still told (MSG_CTRUNC).
- Linux hands out, to whoever peeks, the first descriptors in the socket, even if they came with a
  later message. So they are asked for only if a message should have some, and are not that
  message's if none come with it when it is taken.
"""

from __future__ import annotations

import array
import math
import socket
from collections.abc import Callable
from typing import Final
from zlib import crc32

import trio

from protocol.vhost_user import (
    HEADER,
    HEADER_SIZE,
    MAX_PAYLOAD_SIZE,
    MAX_TABLE_REGIONS,
    REPLY_FLAGS,
)
from vhost_balloon.errors import StreamError
from vhost_balloon.fds import OwnedFd, receive_fds
from vhost_balloon.front_end.partial import Partial, parse_header
from vhost_balloon.front_end.peer import has_gone, is_peer, peer_pid
from vhost_balloon.log.lines import Shortage
from vhost_balloon.pace.polling import Polling
from vhost_balloon.session.message import Message, carries_fds
from vhost_balloon.store.journal import Journal
from vhost_balloon.store.reply_pipe import ReplyPipe
from vhost_balloon.store.shelf import Shelf, shelf_name

_ANCILLARY: Final = socket.CMSG_SPACE(MAX_TABLE_REGIONS * array.array("i").itemsize)
"""No request has more descriptors. The kernel drops what is beyond, and the request is refused."""
# Plain numbers: an operator of an IntFlag takes a microsecond, and this is the guest's hot path.
_TAKE: Final = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
_PEEK: Final = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT | socket.MSG_PEEK)
_SEND_FLAGS: Final = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
_TRUNCATED: Final = int(socket.MSG_CTRUNC)
STALL_PATIENCE: Final = 10.0
"""Seconds until a front end that says nothing, or stops inside a message, is complained about."""
SHELF_PAUSE: Final = 0.1
"""Seconds until it is tried again to put descriptors on a shelf that has no room for them."""

_GLANCE: Final = 512
"""Bytes that are looked at first: all messages but tables of memory regions fit."""
LOST: Final = ("lost",)
"""In the journal: descriptors came with the message, and cannot be had."""


def _close(fds: list[OwnedFd]) -> None:
    for fd in fds:
        fd.close()


class Transport:
    """One connected front-end socket; fd is taken over.

    A guest waits, with QEMU's lock held, for the answer to each message. So there is one pass
    through the event loop a message: the socket itself is read and written, without a turn for
    others between header, payload and reply, as trio's own streams would give.

    With a shelf descriptors are on it, and with a journal each message is in it, before it is
    taken from the socket; pipe is what replies go through then. partial is a message that was begun
    to be taken in parts.
    """

    def __init__(
        self,
        fd: OwnedFd,
        shelf: Shelf | None = None,
        journal: Journal | None = None,
        pipe: ReplyPipe | None = None,
        partial: Partial | None = None,
    ) -> None:
        self.fd: Final = fd
        self._sock = socket.socket(fileno=fd.fileno())
        self._shelf = shelf
        self._journal = journal
        self._pipe = pipe
        self._polling = Polling()
        self._shortage: Final = Shortage()
        self.partial = partial
        self.partial_changed: Callable[[], None] = lambda: None
        """Called when a part of a message was taken."""
        self.stalled: Callable[[], None] = lambda: None
        """Called when bytes that must come, of the first message or of one begun, do not."""
        self.is_new = True
        """Nothing has come yet."""

    def peer_pid(self) -> int | None:
        """See peer.peer_pid()."""
        return peer_pid(self._sock)

    def is_peer(self, pid: int) -> bool:
        """See peer.is_peer()."""
        return is_peer(self._sock, pid)

    async def receive(self) -> Message | None:
        """The next message, or None at the end of the stream.

        Raises StreamError where what comes is no vhost-user message or ends inside one.
        """
        if self.is_new and self.partial is None:
            await self._wait_for_more(trio.current_time() + STALL_PATIENCE)
            self.is_new = False
        elif self.partial is None or self.partial.missing() > 0:
            await self._wait()
        while self.partial is None:
            try:
                data = self._sock.recv(_GLANCE, _PEEK)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
                continue
            except ConnectionResetError:
                return None
            if not data:
                return None
            message = await self._whole(data)
            if message is None:
                self.partial = Partial()
                break
            return message
        return await self._in_parts()

    async def _wait_for_more(self, patience_ends: float) -> None:
        """Wait for what must come; complain, at that time of trio's clock, if it does not."""
        with trio.CancelScope(deadline=patience_ends):
            await trio.lowlevel.wait_readable(self._sock)
            return
        self.stalled()
        await trio.lowlevel.wait_readable(self._sock)

    async def _wait(self) -> None:
        """Until there is something to be read, or the stream ends."""
        if not await self._polling.finds(self._has_more):
            await trio.lowlevel.wait_readable(self._sock)
            self._polling.woken()

    def _has_more(self) -> bool:
        try:
            self._sock.recv(1, _PEEK)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            pass
        return True

    async def _whole(self, data: bytes) -> Message | None:
        """Take a message whose beginning was seen; None, nothing taken, if not all is there."""
        if len(data) < HEADER_SIZE:
            return None
        request, flags, size = parse_header(data)
        total = HEADER_SIZE + size
        if size > MAX_PAYLOAD_SIZE:
            return None
        fds: list[OwnedFd] = []
        is_short = False
        if len(data) < total or carries_fds(request, data[HEADER_SIZE:total]):
            data, fds, is_short = self._peek(total)
        if len(data) < total or not carries_fds(request, data[HEADER_SIZE:total]):
            _close(fds)
            fds, is_short = [], False
        if len(data) < total:
            return None
        message = Message(request, flags, data[HEADER_SIZE:total], fds, fds_lost=is_short)
        await self._take(message, data[:total])
        return message

    def _peek(
        self, size: int, ancillary_size: int = _ANCILLARY
    ) -> tuple[bytes, list[OwnedFd], bool]:
        """What lies in the socket; the last says whether descriptors are missing."""
        data, ancillary, flags, _ = self._sock.recvmsg(size, ancillary_size, _PEEK)
        return data, receive_fds(ancillary), bool(flags & _TRUNCATED)

    async def _take(self, message: Message, data: bytes) -> None:
        """Take a message that lies in the socket as a whole; its descriptors are here already."""
        try:
            message.fds = await self._shelved(message.fds)
            if self._journal is not None:
                self._journal.begin(data, _names(message.fds))
            came = self._consume(len(data))
            if came != bool(message.fds or message.fds_lost):
                # What was seen belongs to a later message, or has come where none belongs.
                message.close()
                message.fds_lost = came
                if self._journal is not None:
                    self._journal.begin(data, LOST if came else ())
            if self._journal is not None:
                self._journal.taken()
        except BaseException:
            message.close()
            raise

    def _consume(self, left: int) -> bool:
        """Take bytes that were seen; whether any descriptors came with them."""
        came = False
        while left:
            data, _, flags, _ = self._sock.recvmsg(left, 0, _TAKE)
            came |= bool(flags & _TRUNCATED)
            left -= len(data)
        return came

    async def _shelved(self, fds: list[OwnedFd]) -> list[OwnedFd]:
        """Descriptors, once they are on the shelf. Until there is room for them, their message
        stays in the socket. Raises ConnectionError if the front end goes meanwhile."""
        while fds and self._shelf is not None:
            try:
                return self._shelf.put(fds)
            except OSError as error:
                self._shortage.say(
                    f"a message has to wait: no room on the shelf: {error.strerror}", None
                )
            try:
                await trio.sleep(SHELF_PAUSE)
                if has_gone(self.fd):
                    raise BrokenPipeError("front end gone")
            except BaseException:
                _close(fds)
                raise
        return fds

    async def _in_parts(self) -> Message:
        """Go on with the partial message until it is whole. Raises StreamError."""
        partial = self.partial
        assert partial is not None
        patience_ends = trio.current_time() + STALL_PATIENCE
        while (missing := partial.missing()) > 0:
            try:
                # Each part may bring some more, and there may be any number of parts.
                has_all = len(partial.fds) >= MAX_TABLE_REGIONS
                data, fds, is_short = self._peek(
                    min(missing, MAX_PAYLOAD_SIZE), 0 if has_all else _ANCILLARY
                )
            except BlockingIOError:
                await self._wait_for_more(patience_ends)
                if trio.current_time() >= patience_ends:
                    patience_ends = math.inf
                continue
            except ConnectionResetError:
                data = b""
            if not data:
                raise StreamError("connection ended inside a message")
            await self._take_part(partial, data, fds, is_short)
            if partial.missing() > 0:  # whoever sends without end must not keep others from a turn
                await trio.lowlevel.checkpoint()
        data = bytes(partial.data)
        message, self.partial = partial.message(), None
        if self._journal is not None:
            self._journal.begin(data, _names(message.fds))
            self._journal.taken()
        return message

    async def _take_part(
        self, partial: Partial, data: bytes, fds: list[OwnedFd], is_short: bool
    ) -> None:
        """Take what was seen of a message: it is in partial, and on record, before."""
        fds = await self._shelved(fds)
        partial.fds += fds
        partial.add(data)
        partial.unsure = len(data), crc32(data)
        self.partial_changed()
        came = self._consume(len(data))
        partial.unsure = None
        partial.fds_lost |= came and is_short
        if fds and not came:  # see _take()
            partial.fds = partial.fds[: -len(fds)]
            _close(fds)
        self.partial_changed()

    async def reply(self, request: int, payload: bytes) -> None:
        """Send a reply. Raises ConnectionError if the front end is gone."""
        left = HEADER.pack(request, REPLY_FLAGS, len(payload)) + payload
        while left := left[self._send(left) :]:
            await trio.lowlevel.wait_writable(self._sock)
        self._polling.answered()

    def _send(self, data: bytes) -> int:
        """Send what the socket takes at once; the bytes that it took."""
        if self._pipe is not None and self._journal is not None:
            return self._pipe.send(self._sock.fileno(), data, self._journal)
        try:
            return self._sock.send(data, _SEND_FLAGS)
        except BlockingIOError:
            return 0

    # After a restart

    def begins_with(self, data: bytes) -> bool:
        """Whether this is what the socket holds next."""
        try:
            return self._sock.recv(len(data), _PEEK) == data
        except (BlockingIOError, ConnectionResetError):
            return False

    def make_sure(self) -> None:
        """Drop from the socket what is in the partial message already."""
        if self.partial is None or self.partial.unsure is None:
            return
        size, checksum = self.partial.unsure
        try:
            data = self._sock.recv(size, _PEEK)
        except (BlockingIOError, ConnectionResetError):
            data = b""
        if len(data) == size and crc32(data) == checksum:
            self._consume(size)
        self.partial.unsure = None

    def close(self) -> None:
        if self.partial is not None:
            self.partial.close()
        self._sock.detach()
        self.fd.close()


def _names(fds: list[OwnedFd]) -> tuple[str, ...]:
    return tuple(shelf_name(fd) or "" for fd in fds)

"""Receives vhost-user messages one at a time, with their descriptors (SCM_RIGHTS); sends replies.

A message is peeked at as a whole before it is taken from the socket, so that a process that dies at
any moment leaves it in the socket or in the journal (store/journal.py). In between, before anything
else is done with them, its descriptors go on the shelf (store/shelf.py).

- Peeking stops after the first bytes that carry descriptors. A message that a front end sends in
  parts, and that never lies in the socket as a whole, is taken part by part (partial.py).
- Bytes that were peeked at are taken without room for descriptors, which would be installed a
  second time. MSG_CTRUNC still tells whether any came with these bytes.
- When peeking, Linux returns the first descriptors in the socket, even if they came with a later
  message. So they are requested only if the message should have some, and dropped if none come
  with the message when it is taken (peeked.py).
- A message with more descriptors than any request has loses all of them at once, in however many
  parts they come; it is read to its end and refused. So is one that is too long for the journal,
  without its payload.
"""

from __future__ import annotations

import math
import select
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
    Request,
)
from vhost_balloon.errors import StreamError
from vhost_balloon.fds import OwnedFd, shut_down
from vhost_balloon.front_end.partial import Partial, parse_header
from vhost_balloon.front_end.peeked import PEEK, ROOM, TRUNCATED, Peeked, peek
from vhost_balloon.front_end.peer import has_gone, is_peer, peer_pid
from vhost_balloon.log.lines import Shortage
from vhost_balloon.pace.polling import Polling
from vhost_balloon.session.message import Message, carries_fds
from vhost_balloon.store.journal import Journal
from vhost_balloon.store.reply_pipe import ReplyPipe
from vhost_balloon.store.shelf import Shelf, shelf_name

# Plain ints, as in peeked.py.
_TAKE: Final = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
_SEND_FLAGS: Final = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
STALL_PATIENCE: Final = 10.0
"""Seconds before logging that a front end sends nothing at first, or stops inside a message."""
SHELF_PAUSE: Final = 0.1
"""Seconds between attempts to put descriptors on a full shelf."""

_UNKNOWN: Final = max(Request) + 1
"""Stands for all requests that are unknown, so that polling learns about few kinds."""

_FIRST_PEEK: Final = 512
"""Bytes to peek at first: enough for every message but tables of memory regions."""
_LOST: Final = "lost"
"""In the journal, as a descriptor's name: descriptors of this message were lost."""


class Transport:
    """One connected front-end socket; fd is taken over.

    The guest waits for each answer, with QEMU's lock held. So each message takes one pass through
    the event loop: the socket is read and written directly, because trio's streams would let other
    tasks run between header, payload and reply.

    Before a message is taken from the socket, its descriptors are put on the shelf, and the message
    itself into the journal; replies then go through pipe. partial is a message that the process
    before took in part.
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
        # Peeking skips an urgent byte, for which the socket stays readable (MSG_OOB in unix(7)).
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        self._shelf = shelf
        self._journal = journal
        self._pipe = pipe
        self.polling: Final = Polling()
        self._arrivals: Final = select.poll()
        self._arrivals.register(self._sock, select.POLLIN)
        self._shortage: Final = Shortage()
        self.partial = partial
        self.partial_changed: Callable[[], None] = lambda: None
        """Called before and after part of a message is taken."""
        self.stalled: Callable[[], None] = lambda: None
        """Called when the first message, or the rest of one, does not arrive in time."""
        self.is_new = True
        """No whole message has arrived yet."""
        self.heard: Callable[[], None] = lambda: None
        """Called when the first whole message has arrived."""
        self._patience_ends: float | None = None
        self._longest: Final = (
            MAX_PAYLOAD_SIZE
            if journal is None
            else min(MAX_PAYLOAD_SIZE, journal.longest - HEADER_SIZE)
        )
        """The longest payload to keep, in bytes."""

    def peer_pid(self) -> int | None:
        """See peer.peer_pid()."""
        return peer_pid(self._sock)

    def is_peer(self, pid: int) -> bool:
        """See peer.is_peer()."""
        return is_peer(self._sock, pid)

    async def receive(self) -> Message | None:
        """Return the next message, or None at the end of the stream.

        Raises StreamError if the bytes are no vhost-user message or end inside one.
        """
        if self.partial is None:
            seen = await self._first()
            if not seen.data:
                return None
            message = await self._whole(seen)
            if message is not None:
                return message
            self.partial = Partial()
        elif self.partial.missing() > 0:
            await trio.lowlevel.wait_readable(self._sock)
        return await self._in_parts()

    async def _first(self) -> Peeked:
        """Wait for the first bytes of a message; there are none at the end of the stream."""
        if self.is_new:
            if self._patience_ends is None:
                self._patience_ends = trio.current_time() + STALL_PATIENCE
            self._patience_ends = await self._wait_for_more(self._patience_ends)
        elif not await self.polling.finds(self._has_arrived):
            await trio.lowlevel.wait_readable(self._sock)
            self.polling.asked()
        while True:
            try:
                return peek(self._sock, _FIRST_PEEK, 0)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
            except ConnectionResetError:
                return Peeked(b"")

    def _has_arrived(self) -> bool:
        """Whether anything has arrived, or the stream has ended.

        Polling mostly finds nothing. A peek would raise an exception then, which takes long.
        """
        return bool(self._arrivals.poll(0))

    async def _wait_for_more(self, patience_ends: float) -> float:
        """Wait for bytes; call stalled() if none have arrived at patience_ends (trio's clock).

        Return when patience ends from then on: never, once stalled() was called.
        """
        with trio.CancelScope(deadline=patience_ends):
            await trio.lowlevel.wait_readable(self._sock)
            return patience_ends
        self.stalled()
        await trio.lowlevel.wait_readable(self._sock)
        return math.inf

    def _hear(self) -> None:
        """Note that a whole message has arrived."""
        if self.is_new:
            self.is_new = False
            self.heard()

    def _look(self, size: int) -> bytes | None:
        """Peek at bytes only; b"" at the end of the stream, None if nothing has arrived."""
        try:
            return self._sock.recv(size, PEEK)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return b""

    async def _whole(self, seen: Peeked) -> Message | None:
        """Take the message that begins with the bytes seen; take nothing and return None if it is
        not all in the socket."""
        if len(seen.data) < HEADER_SIZE:
            return None
        request, flags, size = parse_header(seen.data)
        if size > self._longest:
            return None
        total = HEADER_SIZE + size
        if len(seen.data) < total or total >= _FIRST_PEEK:
            seen = peek(self._sock, total + 1, 0)
            if len(seen.data) < total:
                return None
        self._hear()
        if carries_fds(request, seen.data[HEADER_SIZE:total]):
            seen = peek(self._sock, total)
        elif len(seen.data) > total:  # peeking did not stop here: they come with later bytes
            seen = Peeked(seen.data[:total])
        if seen.fds:
            await self._shelve(seen)
        try:
            self._begin(seen.data, seen)
            if not seen.confirm(self._take(total)):
                self._begin(seen.data, seen)
            if self._journal is not None:
                self._journal.taken()
        except BaseException:
            seen.close()
            raise
        return Message(request, flags, seen.data[HEADER_SIZE:], seen.fds, fds_lost=seen.fds_lost)

    def _begin(self, data: bytes, seen: Peeked | Message) -> None:
        """Write a message into the journal."""
        if self._journal is not None:
            names = [shelf_name(fd) or "" for fd in seen.fds]
            self._journal.begin(data, [*names, _LOST] if seen.fds_lost else names)

    def _take(self, size: int) -> bool:
        """Take bytes that were peeked at; return whether descriptors came with them."""
        fds_came = False
        while size:
            data, _, flags, _ = self._sock.recvmsg(size, 0, _TAKE)
            fds_came |= bool(flags & TRUNCATED)
            size -= len(data)
        return fds_came

    async def _shelve(self, seen: Peeked) -> None:
        """Put the descriptors on the shelf; their message stays in the socket until there is room.

        Raises ConnectionError if the front end goes meanwhile.
        """
        while seen.fds and self._shelf is not None:
            try:
                seen.fds = self._shelf.put(seen.fds)
                return
            except OSError as error:
                self._shortage.say(
                    f"a message has to wait: no room on the shelf: {error.strerror}", None
                )
            try:
                await trio.sleep(SHELF_PAUSE)
                if has_gone(self.fd):
                    raise BrokenPipeError("front end gone")
            except BaseException:
                seen.close()
                raise

    async def _in_parts(self) -> Message:
        """Take parts until the partial message is whole. Raises StreamError."""
        partial = self.partial
        assert partial is not None
        partial.longest = self._longest
        patience_ends = trio.current_time() + STALL_PATIENCE
        while (missing := partial.missing()) > 0:
            try:
                room = 0 if partial.fds_lost else ROOM
                seen = peek(self._sock, min(missing, MAX_PAYLOAD_SIZE), room)
            except BlockingIOError:
                patience_ends = await self._wait_for_more(patience_ends)
                continue
            except ConnectionResetError:
                seen = Peeked(b"")
            if not seen.data:
                raise StreamError("connection ended inside a message")
            await self._take_part(partial, seen)
            if partial.missing() > 0:  # an endless message must not starve other tasks
                await trio.lowlevel.checkpoint()
        self._hear()
        message, self.partial = partial.message(), None
        self._begin(partial.request(), message)
        if self._journal is not None:
            self._journal.taken()
        return message

    async def _take_part(self, partial: Partial, seen: Peeked) -> None:
        """Take part of a message, which is in partial, and on record, before it is taken."""
        if len(partial.fds) + len(seen.fds) > MAX_TABLE_REGIONS:
            seen.lose()
        if partial.is_last(seen.data):
            self._hear()  # the message may have to wait for the shelf
        await self._shelve(seen)
        fds_before, lost_before = partial.fds, partial.fds_lost
        partial.fds = fds_before + seen.fds
        partial.fds_lost = lost_before or seen.fds_lost
        partial.add(seen.data)
        partial.unsure = len(seen.data), crc32(seen.data)
        self.partial_changed()
        seen.confirm(self._take(len(seen.data)))
        partial.fds = fds_before + seen.fds
        partial.fds_lost = lost_before or seen.fds_lost
        if partial.fds_lost:
            partial.close()
        partial.unsure = None
        self.partial_changed()

    async def reply(self, request: int, payload: bytes) -> None:
        """Send a reply. Raises ConnectionError if the front end is gone."""
        left = HEADER.pack(request, REPLY_FLAGS, len(payload)) + payload
        while left := left[self._send(left) :]:
            await trio.lowlevel.wait_writable(self._sock)
        self.polling.answered(min(request, _UNKNOWN))

    def _send(self, data: bytes) -> int:
        """Send what the socket accepts at once; return the number of bytes."""
        if self._pipe is not None and self._journal is not None:
            return self._pipe.send(self._sock.fileno(), data, self._journal)
        try:
            return self._sock.send(data, _SEND_FLAGS)
        except BlockingIOError:
            return 0

    # After a restart

    def begins_with(self, data: bytes) -> bool:
        """Whether the socket holds these bytes next."""
        return self._look(len(data)) == data

    def make_sure(self) -> None:
        """Drop bytes from the socket that the partial message contains already."""
        if self.partial is None:
            return
        if self.partial.fds_lost:
            self.partial.close()
        if self.partial.unsure is None:
            return
        size, checksum = self.partial.unsure
        data = self._look(size) or b""
        if len(data) == size and crc32(data) == checksum:
            self._take(size)
        self.partial.unsure = None

    def shut_down(self) -> None:
        """End the connection, also for the service manager's copy of the socket."""
        shut_down(self.fd)

    def close(self) -> None:
        if self.partial is not None:
            self.partial.close()
        self._sock.detach()
        self.fd.close()

"""The shelf: keeps the front end's descriptors in socket pairs, where they outlive this process.

Theory of operation. A descriptor sent into a socket pair with SCM_RIGHTS stays open until it is
received, even if the sender dies. So a message's descriptors are sent into a pair before the
message is taken from the front end's socket, and are never received, only peeked at. Both ends of
the pair are in the descriptor store.

- A packet holds the descriptors of one message: the message's number, and a bit for each descriptor
  present (lowest first). A descriptor's name is number.index, in either pair.
- There are two pairs; the record says which one is in use. Nothing is removed singly: when unused
  descriptors have piled up, or the pair is full, the other pair is emptied and filled with those in
  use, the record is updated, and the first pair is emptied. Wherever a process dies in between, the
  pair that the record names is complete.
- A packet that no record names is harmless. Its number is not used again: the first packet in a
  freshly filled pair has the highest number so far, and no descriptor.
- Emptying a pair receives packets without room for descriptors. So none is installed here, and none
  has to be closed, which would hang if its file hangs.

Source: unix(7); SO_PEEK_OFF in socket(7).
"""

from __future__ import annotations

import array
import errno
import os
import socket
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Final, Self

from protocol.vhost_user import MAX_TABLE_REGIONS
from vhost_balloon.errors import StateError
from vhost_balloon.fds import OwnedFd, receive_fds

SO_PEEK_OFF: Final = 42
"""include/uapi/asm-generic/socket.h; the socket module has no name for it."""
BUFFER: Final = 1 << 20
"""Bytes that a pair may hold, limited by net.core.wmem_max: some 550 packets by default."""
SPARE_PACKETS: Final = 64
"""Packets that a pair may hold in addition to twice the number of descriptors in use."""

MAX_PACKET: Final = MAX_TABLE_REGIONS
"""Most descriptors in one packet: no request has more."""

_PACKET: Final = struct.Struct("<QB")
_ANCILLARY: Final = socket.CMSG_SPACE(MAX_PACKET * array.array("i").itemsize)
_PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_SEND: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

ENDS: Final = ("a-in", "a-out", "b-in", "b-out")
"""Names of the four ends, in the order that Shelf expects."""


class ShelvedFd(OwnedFd):
    """A descriptor that stays on the shelf for as long as this object is open."""

    __slots__ = ("_shelf", "name")

    def __init__(self, fd: int, name: str, shelf: Shelf) -> None:
        super().__init__(fd)
        self.name = name
        self._shelf = shelf
        shelf.users.setdefault(name, []).append(self)

    def close(self) -> None:
        if self._fd >= 0:
            self._shelf.closed(self)
        super().close()


def shelf_name(fd: OwnedFd) -> str | None:
    """A descriptor's name on the shelf, or None if it is not there."""
    return fd.name if isinstance(fd, ShelvedFd) else None


class _Pair:
    """One socket pair; the caller owns the ends."""

    def __init__(self, ends: tuple[OwnedFd, OwnedFd]) -> None:
        self.ends: Final = ends
        self._in, self._out = (socket.socket(fileno=end.fileno()) for end in ends)
        self._in.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self.packets = 0

    def send(self, number: int, bits: int = 0, fds: Iterable[int] = ()) -> None:
        """Raises BlockingIOError if it is full, OSError if too many descriptors are in flight."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if bits else []
        self._in.sendmsg([_PACKET.pack(number, bits)], rights, _SEND)
        self.packets += 1

    def look(self, ancillary: int = 0) -> Iterator[tuple[int, int, list[OwnedFd]]]:
        """Peek at each packet: number, bits and descriptors. ancillary: bytes of room for the
        descriptors; 0 for none."""
        # The offset belongs to the socket: a process that died while peeking left it elsewhere.
        self._out.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        self.packets = 0
        with suppress(BlockingIOError):
            while True:
                data, found, _, _ = self._out.recvmsg(_PACKET.size, ancillary, _PEEK)
                fds = receive_fds(found)
                if len(data) < _PACKET.size:  # the other end is closed
                    return
                self.packets += 1
                yield *_PACKET.unpack(data), fds

    def empty(self) -> None:
        with suppress(BlockingIOError):
            while self._out.recv(_PACKET.size, socket.MSG_DONTWAIT):
                pass
        self.packets = 0

    def detach(self) -> None:
        self._in.detach()
        self._out.detach()


class Shelf:
    """Both pairs. ends: in the order of ENDS; in_use: 0 or 1, from the record."""

    def __init__(self, ends: Iterable[OwnedFd], in_use: int = 0) -> None:
        """Raises OSError for descriptors that are not sockets."""
        self.ends: Final = tuple(ends)
        if not all(stat.S_ISSOCK(os.fstat(end.fileno()).st_mode) for end in self.ends):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        a_in, a_out, b_in, b_out = self.ends
        self._pairs: Final = (_Pair((a_in, a_out)), _Pair((b_in, b_out)))
        self.in_use = in_use
        self.users: Final[dict[str, list[ShelvedFd]]] = {}
        """Open descriptors by name."""
        self.switched: Callable[[], None] = lambda: None
        """Called when the other pair is complete, before the previous one is emptied."""
        self._left: dict[str, OwnedFd] = {}
        self._number = 0

    @classmethod
    def create(cls) -> Self:
        """An empty shelf. Raises OSError."""
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        return cls(OwnedFd(end.detach()) for pair in pairs for end in pair)

    def load(self) -> None:
        """Read what the previous process left, for adopt().

        Raises OSError (EMFILE) if there are too few descriptors; nothing is taken over then.
        """
        self._left.clear()
        for number, _, _ in self._pairs[1 - self.in_use].look():
            self._number = max(self._number, number)
        for number, bits, fds in self._pairs[self.in_use].look(_ANCILLARY):
            self._number = max(self._number, number)
            if len(fds) != bits.bit_count():
                self._left.clear()
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            self._left |= dict(zip(_names(number, bits), fds, strict=True))

    def adopt(self, name: str) -> OwnedFd:
        """Take over a descriptor, once for each use on record. Raises StateError if it is lost."""
        fd = self._left.pop(name, None)
        if fd is not None:
            return ShelvedFd(fd.detach(), name, self)
        users = self.users.get(name)
        if not users:
            raise StateError(f"descriptor {name} is lost")
        return ShelvedFd(os.dup(users[0].fileno()), name, self)

    def sweep(self) -> None:
        """Close descriptors that were left and not adopted."""
        for fd in self._left.values():
            fd.close()
        self._left.clear()

    def clear(self) -> None:
        """Let go of all that is not in use: the front end has gone, and descriptors on the shelf
        would keep its guest's memory from the host."""
        self.sweep()
        if not self.users and self._pairs[self.in_use].packets:
            with suppress(OSError):  # the next message that finds no room tries again
                self._compact()

    def put(self, fds: list[OwnedFd]) -> list[OwnedFd]:
        """Put a message's descriptors, at most MAX_PACKET, on the shelf, and take them over.

        Raises OSError if there is no room, or if too many of this user's descriptors are in flight;
        the caller still owns the descriptors then.
        """
        if self._pairs[self.in_use].packets > 2 * len(self.users) + SPARE_PACKETS:
            with suppress(OSError):  # there may still be room
                self._compact()
        number, bits = self._number + 1, (1 << len(fds)) - 1
        numbers = [fd.fileno() for fd in fds]
        try:
            self._pairs[self.in_use].send(number, bits, numbers)
        except OSError:
            self._compact()
            self._pairs[self.in_use].send(number, bits, numbers)
        self._number = number
        names = _names(number, bits)
        return [ShelvedFd(fd.detach(), name, self) for fd, name in zip(fds, names, strict=True)]

    def closed(self, fd: ShelvedFd) -> None:
        """Note that one use of a descriptor has ended."""
        users = self.users[fd.name]
        users.remove(fd)
        if not users:
            del self.users[fd.name]

    def _compact(self) -> None:
        """Move the descriptors in use to the other pair. Raises OSError; nothing is changed
        then."""
        messages: dict[int, dict[int, int]] = {}
        for name, users in self.users.items():
            packet, _, index = name.partition(".")
            messages.setdefault(int(packet), {})[int(index)] = users[0].fileno()
        other = self._pairs[1 - self.in_use]
        other.empty()
        try:
            other.send(self._number)
            for number, fds in messages.items():
                bits = sum(1 << index for index in fds)
                other.send(number, bits, (fds[index] for index in sorted(fds)))
        except OSError:
            other.empty()  # its descriptors count as in flight
            raise
        before, self.in_use = self._pairs[self.in_use], 1 - self.in_use
        self.switched()
        before.empty()

    def close(self) -> None:
        """Close the ends. Their content is lost unless the store has them."""
        self.sweep()
        for pair in self._pairs:
            pair.detach()
        for end in self.ends:
            end.close()


def _names(number: int, bits: int) -> list[str]:
    return [f"{number}.{index}" for index in range(MAX_PACKET) if bits >> index & 1]

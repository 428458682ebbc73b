"""The shelf: descriptors of the front end that outlive this process in sockets of its own.

Theory of operation. What is sent into a socket pair with SCM_RIGHTS stays open until it is
received, whoever sent it. So a message's descriptors are sent into a pair before the message is
taken from the front end's socket, and never received again: whoever goes on with them peeks. Both
ends of the pair are in the descriptor store.

- A packet is what is left of one message: its number, and which of its descriptors (bits, the
  lowest first). A descriptor's name is number.index; it is the same wherever it lies.
- There are two pairs. One is in use, and the record says which. Nothing is removed singly: when
  what nobody uses any more has piled up, or the pair is full, the other one is emptied and filled
  with what is in use, the record is told, and the first one is emptied. A process that dies
  anywhere in between leaves one pair that is whole, and the record names it.
- A packet that no record names is harmless. Its number is not used again: the first packet of a
  pair that was filled so has the highest number so far, and no descriptor.
- Emptying takes packets without asking for their descriptors. So none is installed here, and none
  has to be closed, which would hang where its file hangs.

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
"""Bytes that a pair may hold, as far as net.core.wmem_max lets it: some 550 packets by default."""
SPARE_PACKETS: Final = 64
"""Packets that a pair may hold beyond twice as many as there are descriptors in use."""

MAX_PACKET: Final = MAX_TABLE_REGIONS
"""Descriptors in one packet: no request has more."""

_PACKET: Final = struct.Struct("<QB")
_ANCILLARY: Final = socket.CMSG_SPACE(MAX_PACKET * array.array("i").itemsize)
_PEEK: Final = int(socket.MSG_PEEK | socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_SEND: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

ENDS: Final = ("a-in", "a-out", "b-in", "b-out")
"""What the four ends are called, in the order in which Shelf takes them."""


class ShelvedFd(OwnedFd):
    """A descriptor that lies on the shelf for as long as this one is open."""

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
    """The name that the shelf knows a descriptor by, or None."""
    return fd.name if isinstance(fd, ShelvedFd) else None


class _Pair:
    """One socket pair; the descriptors stay their owner's."""

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
        """Number, bits and descriptors of each packet; without room for ancillary data, no
        descriptors."""
        # The offset belongs to the socket: a process that died while it peeked left it elsewhere.
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
    """Both pairs. ends: as named by ENDS; in_use: 0 or 1, as the record says."""

    def __init__(self, ends: Iterable[OwnedFd], in_use: int = 0) -> None:
        """Raises OSError for descriptors that are no sockets."""
        self.ends: Final = tuple(ends)
        if not all(stat.S_ISSOCK(os.fstat(end.fileno()).st_mode) for end in self.ends):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        a_in, a_out, b_in, b_out = self.ends
        self._pairs: Final = (_Pair((a_in, a_out)), _Pair((b_in, b_out)))
        self.in_use = in_use
        self.users: Final[dict[str, list[ShelvedFd]]] = {}
        """Open descriptors by name."""
        self.switched: Callable[[], None] = lambda: None
        """Called when the other pair is whole, before the one that was in use is emptied."""
        self._left: dict[str, OwnedFd] = {}
        self._number = 0

    @classmethod
    def create(cls) -> Self:
        """An empty shelf. Raises OSError."""
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        return cls(OwnedFd(end.detach()) for pair in pairs for end in pair)

    def load(self) -> None:
        """Look at what a process before this one left, for adopt().

        Raises OSError (EMFILE) if not all descriptors could be had: nothing is taken over then.
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
        """Go on with a descriptor, as often as records name it. Raises StateError if it is lost."""
        fd = self._left.pop(name, None)
        if fd is not None:
            return ShelvedFd(fd.detach(), name, self)
        users = self.users.get(name)
        if not users:
            raise StateError(f"descriptor {name} is lost")
        return ShelvedFd(os.dup(users[0].fileno()), name, self)

    def sweep(self) -> None:
        """Close what was left and nobody adopted."""
        for fd in self._left.values():
            fd.close()
        self._left.clear()

    def put(self, fds: list[OwnedFd]) -> list[OwnedFd]:
        """Put a message's descriptors, MAX_PACKET at most, on the shelf, and take them over.

        Raises OSError if there is no room, or if too many of this user's descriptors are in flight;
        the descriptors stay the caller's then.
        """
        if self._pairs[self.in_use].packets > 2 * len(self.users) + SPARE_PACKETS:
            with suppress(OSError):  # there may be room all the same
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
        """A user has gone."""
        users = self.users[fd.name]
        users.remove(fd)
        if not users:
            del self.users[fd.name]

    def _compact(self) -> None:
        """Move to the other pair what is in use. Raises OSError, and the pair in use stays."""
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
            other.empty()  # what lies in it counts as in flight
            raise
        before, self.in_use = self._pairs[self.in_use], 1 - self.in_use
        self.switched()
        before.empty()

    def close(self) -> None:
        """Close the ends. What lies in them goes unless the store has them."""
        self.sweep()
        for pair in self._pairs:
            pair.detach()
        for end in self.ends:
            end.close()


def _names(number: int, bits: int) -> list[str]:
    return [f"{number}.{index}" for index in range(MAX_PACKET) if bits >> index & 1]

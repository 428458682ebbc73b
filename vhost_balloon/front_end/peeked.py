"""Bytes at the front of a socket, and the descriptors that seem to come with them."""

from __future__ import annotations

import array
import socket
from dataclasses import dataclass, field
from typing import Final

from protocol.vhost_user import MAX_TABLE_REGIONS
from vhost_balloon.fds import OwnedFd, receive_fds

ROOM: Final = socket.CMSG_SPACE(MAX_TABLE_REGIONS * array.array("i").itemsize)
"""No request has more descriptors. The kernel drops the excess and says so."""
# Plain ints: an IntFlag's operators take a microsecond each, and this is the guest's hot path.
PEEK: Final = int(socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT | socket.MSG_PEEK)
TRUNCATED: Final = int(socket.MSG_CTRUNC)


@dataclass(slots=True)
class Peeked:
    """fds_lost: not all descriptors could be received, or more came than belong; those that were
    received are closed then."""

    data: bytes
    fds: list[OwnedFd] = field(default_factory=list)
    fds_lost: bool = False

    def confirm(self, fds_came: bool) -> bool:
        """Correct this, once the bytes are taken, by whether descriptors really came with them.

        If none came, those that were seen belong to a later message. If some came unseen, they
        belong nowhere. Returns whether all was as seen.
        """
        if fds_came == bool(self.fds or self.fds_lost):
            return True
        self.close()
        self.fds_lost = fds_came
        return False

    def lose(self) -> None:
        """Close the descriptors: their message is refused."""
        self.close()
        self.fds_lost = True

    def close(self) -> None:
        for fd in self.fds:
            fd.close()
        self.fds = []


def peek(sock: socket.socket, size: int, room: int = ROOM) -> Peeked:
    """Peek at up to size bytes; room is for their descriptors, in bytes.

    Raises BlockingIOError if nothing has arrived, and ConnectionResetError.
    """
    data, ancillary, flags, _ = sock.recvmsg(size, room, PEEK)
    seen = Peeked(data, receive_fds(ancillary))
    if flags & TRUNCATED:
        seen.lose()
    return seen

"""The process at the other end of a Unix socket: unix(7), pidfd_open(2)."""

from __future__ import annotations

import errno
import os
import select
import socket
from contextlib import closing
from typing import Final

from vhost_balloon.fds import OwnedFd

SO_PEERPIDFD: Final = 77
"""include/uapi/asm-generic/socket.h, from Linux 6.5 on; the socket module has no name for it."""


def peer_pid(sock: socket.socket) -> int | None:
    """The process that connected, by SO_PEERCRED; None if it is not in our PID namespace.

    It may have ended since, and another process may have its number now: see is_peer().
    """
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid = int.from_bytes(credentials[:4], "little", signed=True)
    return pid if pid > 0 else None


def is_peer(sock: socket.socket, pid: int) -> bool:
    """Whether the process that connected is there still, and /proc knows it by this number.

    A /proc of another PID namespace numbers processes otherwise. Before Linux 6.5 it cannot be
    told whether the number was used again before the first time that this was asked.
    Raises OSError where there is no answer.
    """
    try:
        pidfd = OwnedFd(sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
        pidfd = OwnedFd(os.pidfd_open(pid))
    with closing(pidfd), open(f"/proc/self/fdinfo/{pidfd.fileno()}") as lines:
        return f"Pid:\t{pid}\n" in lines


def has_gone(fd: OwnedFd) -> bool:
    """Whether nobody has the other end any more."""
    poll = select.poll()
    poll.register(fd.fileno(), 0)
    return bool(poll.poll(0))

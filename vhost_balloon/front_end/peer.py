"""Identifies the process at the other end of a Unix socket: unix(7), pidfd_open(2)."""

from __future__ import annotations

import errno
import os
import select
import socket
from contextlib import closing
from typing import Final

from vhost_balloon.fds import OwnedFd

SO_PEERPIDFD: Final = 77
"""include/uapi/asm-generic/socket.h, since Linux 6.5; the socket module lacks it."""


def peer_pid(sock: socket.socket) -> int | None:
    """The PID of the process that connected (SO_PEERCRED); None outside our PID namespace.

    The process may have ended and its PID been reused: see is_peer().
    """
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid = int.from_bytes(credentials[:4], "little", signed=True)
    return pid if pid > 0 else None


def is_peer(sock: socket.socket, pid: int) -> bool:
    """Whether the process that connected is still alive and has this PID in /proc.

    /proc may belong to another PID namespace, with other PIDs. Before Linux 6.5, a PID that was
    reused before the first call goes unnoticed. Raises OSError if the kernel cannot tell.
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
    """Whether every copy of the other end is closed."""
    poll = select.poll()
    poll.register(fd.fileno(), 0)
    return bool(poll.poll(0))

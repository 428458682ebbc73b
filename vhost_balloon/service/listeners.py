"""Unix sockets: listens on paths, sets who may connect, and tells what a descriptor is."""

from __future__ import annotations

import grp
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vhost_balloon.errors import OperatorError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.service.socket_file import SocketFile

BACKLOG: Final = 128
MAX_GROUP_ID: Final = (1 << 32) - 2
"""The next number, as -1, makes chown leave the group as it is."""


def listen(path: Path, access: SocketOptions) -> tuple[socket.socket, SocketFile]:
    """Listen on path; no client can connect before the permissions are set.

    A stale socket of our user is replaced. Raises OperatorError, and leaves nothing behind then.
    """
    group = find_group(access.group)
    with _mistakes(f"cannot listen on {path}"), ExitStack() as undo:
        with suppress(FileNotFoundError), closing(SocketFile.at(path)) as old:
            old.make_way()
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        file = undo.enter_context(closing(SocketFile.bind(sock, path)))
        undo.callback(file.remove)
        file.set_access(access.mode, group)
        sock.listen(BACKLOG)
        file.check_in_place()  # before it listened, another daemon could replace it as stale
        undo.pop_all()
        return sock, file


def change_access(file: SocketFile, access: SocketOptions) -> None:
    """Set who may connect to a listening socket. Raises OperatorError."""
    group = find_group(access.group)
    with _mistakes(f"cannot set the permissions of {file.path}"):
        file.set_access(access.mode, file.default_group() if group is None else group)


def listening_path(fd: OwnedFd) -> Path | None:
    """The path of a listening Unix socket, None for anything else."""
    path = bound_path(fd)
    if path is None:
        return None
    with socket.socket(fileno=os.dup(fd.fileno())) as sock:
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    return path if listens else None


def bound_path(fd: OwnedFd) -> Path | None:
    """The path that a Unix socket was bound to or accepted at; None for anything else."""
    if not stat.S_ISSOCK(os.fstat(fd.fileno()).st_mode):
        return None  # socket() would fail and leak the duplicate
    with socket.socket(fileno=os.dup(fd.fileno())) as sock:
        return socket_path(sock) if sock.family == socket.AF_UNIX else None


def socket_path(sock: socket.socket) -> Path | None:
    """The path that a Unix socket is bound to; None for an abstract address (bytes) or an unnamed
    socket (empty)."""
    address = sock.getsockname()
    return Path(address) if isinstance(address, str) and address else None


@contextmanager
def _mistakes(what: str) -> Iterator[None]:
    """Turn a system error into a mistake that the operator can correct."""
    try:
        yield
    except OSError as error:
        raise OperatorError(f"{what}: {error.strerror or error}") from None


def find_group(group: str | None) -> int | None:
    """The number of a group given by name or number. Raises OperatorError."""
    if group is None:
        return None
    if group.isdecimal() and len(group) <= len(str(MAX_GROUP_ID)) and int(group) <= MAX_GROUP_ID:
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise OperatorError(f"there is no group {group!r}") from None


def adopt_connection(fd: int) -> OwnedFd:
    """An inherited, connected Unix socket, non-blocking. Raises OperatorError."""
    try:
        sock = socket.socket(fileno=fd)
    except (OSError, ValueError, OverflowError) as error:
        raise OperatorError(f"--fd={fd} is not a socket: {error}") from None
    try:
        sock.getpeername()
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            raise OperatorError(f"--fd={fd} is not a Unix stream socket")
    except OSError:
        raise OperatorError(f"--fd={fd} is not connected") from None
    sock.setblocking(False)
    return OwnedFd(sock.detach())


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """Who may connect to a socket: permission bits, and a group's name or number."""

    mode: int = 0o600
    group: str | None = None

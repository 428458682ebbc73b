"""Unix sockets to listen on: their permissions, what may lie in their way, and their removal."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trio

from vhost_balloon.errors import OperatorError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.vm_settings import SocketOptions

BACKLOG: Final = 128
MAX_GROUP_ID: Final = (1 << 32) - 2
"""The one above, -1, means "leave it" to chown."""


@contextmanager
def open_unix_listener(
    path: Path, access: SocketOptions, stays: Callable[[], bool] = lambda: False
) -> Iterator[trio.SocketListener]:
    """Listen on path; on exit the socket is closed, and its file removed if it is still ours.

    A socket that nobody listens on any more is replaced. stays: whether the file is to be left
    on exit, because the service manager listens on. Raises OperatorError.
    """
    find_group(access.group)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        with _mistakes(path):
            _make_way(path)
            _bind(sock, path)
        created = _identity(path)
        try:
            set_access(path, access)
            with _mistakes(path):
                sock.listen(BACKLOG)
            yield trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        finally:
            if created is not None and _identity(path) == created and not stays():
                path.unlink()


def set_access(path: Path, access: SocketOptions) -> None:
    """Set who may connect to a socket. Raises OperatorError."""
    group = find_group(access.group)
    with _mistakes(path):
        if group is not None:
            os.chown(path, -1, group)
        os.chmod(path, access.mode)


@contextmanager
def resume_unix_listener(
    path: Path, fd: OwnedFd, stays: Callable[[], bool]
) -> Iterator[trio.SocketListener]:
    """Go on listening on path with the socket of the process before this one."""
    try:
        with socket.socket(fileno=os.dup(fd.fileno())) as sock:
            yield trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    finally:
        if not stays():
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def listening_path(fd: OwnedFd) -> Path | None:
    """Where a listening Unix socket has its file, None for anything else."""
    path = bound_path(fd)
    if path is None:
        return None
    with socket.socket(fileno=os.dup(fd.fileno())) as sock:
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    return path if listens else None


def bound_path(fd: OwnedFd) -> Path | None:
    """The path that a Unix socket was bound to or accepted at, None for anything else."""
    if not stat.S_ISSOCK(os.fstat(fd.fileno()).st_mode):
        return None  # socket() would refuse it, and leave the copy of the descriptor behind
    with socket.socket(fileno=os.dup(fd.fileno())) as sock:
        return socket_path(sock) if sock.family == socket.AF_UNIX else None


def socket_path(sock: socket.socket) -> Path | None:
    """The path that a Unix socket is bound to: an abstract address is bytes, and no path; that of
    an unnamed socket is empty."""
    address = sock.getsockname()
    return Path(address) if isinstance(address, str) and address else None


@contextmanager
def _mistakes(path: Path) -> Iterator[None]:
    """What the system will not do here is the operator's to mend."""
    try:
        yield
    except OSError as error:
        raise OperatorError(f"cannot listen on {path}: {error.strerror or error}") from None


def _bind(sock: socket.socket, path: Path) -> None:
    """Bind so that nobody can connect before the permissions are set."""
    umask = os.umask(0o177)
    try:
        sock.bind(os.fspath(path))
    finally:
        os.umask(umask)


def _identity(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(FileNotFoundError):
        info = path.stat(follow_symlinks=False)
        return info.st_dev, info.st_ino
    return None


def _make_way(path: Path) -> None:
    """Remove a socket file that nobody listens on. Raises OperatorError for anything else."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OperatorError(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass  # its backlog is full: someone listens
    raise OperatorError(f"{path} is in use: another process listens on it")


def find_group(group: str | None) -> int | None:
    """The number of a group that is given by name or number. Raises OperatorError."""
    if group is None:
        return None
    if group.isdecimal() and len(group) <= len(str(MAX_GROUP_ID)) and int(group) <= MAX_GROUP_ID:
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise OperatorError(f"there is no group {group!r}") from None


def adopt_connection(fd: int) -> trio.SocketStream:
    """A stream over an inherited, connected Unix socket. Raises OperatorError."""
    try:
        sock = socket.socket(fileno=fd)
    except (OSError, ValueError) as error:
        raise OperatorError(f"--fd={fd} is no socket: {error}") from None
    try:
        sock.getpeername()
        if (sock.family, sock.type) != (socket.AF_UNIX, socket.SOCK_STREAM):
            raise OperatorError(f"--fd={fd} is no Unix stream socket")
    except OSError:
        raise OperatorError(f"--fd={fd} is not connected") from None
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))

"""Listening sockets that the service manager opened for us.

By name (FileDescriptorName=), "control" is the control socket and "metrics" the metrics listener.
Any other is the front-end socket, or the control socket if an option names its path
(config/config.py). Their files belong to the service manager and are never removed here.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from vhost_balloon.errors import OperatorError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.log.lines import logger
from vhost_balloon.service.listeners import socket_path

CONTROL: Final = "control"
METRICS: Final = "metrics"
RESERVED_NAMES: Final = (CONTROL, METRICS)

PREFIX: Final = "."
"""Begins all names in the descriptor store (store/descriptors.py), so that none is a socket's."""


@dataclass(frozen=True, slots=True)
class HandedOver:
    """A listening socket; path: its file, None for metrics."""

    sock: socket.socket
    path: Path | None

    def listener(self) -> trio.SocketListener:
        return trio.SocketListener(trio.socket.from_stdlib_socket(self.sock))


def take_sockets(
    inherited: Iterable[tuple[str, OwnedFd]], *, is_restart: bool = False
) -> dict[str, HandedOver]:
    """Take the sockets that were handed over, by name; if a name occurs again, by path.

    All sockets of one unit have the same name. Raises OperatorError for anything that does not
    listen; at a restart it is skipped with a warning.
    """
    found: dict[str, HandedOver] = {}
    for name, fd in inherited:
        if name.startswith(PREFIX):  # from the descriptor store
            continue
        try:
            _add(found, name, fd)
        except OperatorError as error:
            if not is_restart:
                raise
            logger.warning("%s", error)
            fd.close()
    return found


def _add(found: dict[str, HandedOver], name: str, fd: OwnedFd) -> None:
    taken = _take(name, fd)
    if name in RESERVED_NAMES and name in found:
        taken.sock.close()
        raise OperatorError(
            f"two sockets named {name!r} were handed over: FileDescriptorName={name} is for one "
            "socket, alone in its unit"
        )
    found[str(taken.path) if name in found else name] = taken


def _take(name: str, fd: OwnedFd) -> HandedOver:
    try:
        sock = socket.socket(fileno=fd.fileno())
        fd.detach()
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise OperatorError(f"the descriptor {name!r} handed over: {error.strerror}") from None
    path = socket_path(sock) if sock.family == socket.AF_UNIX else None
    mistake = _mistake(name, sock, path, is_listening=bool(listens))
    if mistake:
        sock.close()
        raise OperatorError(f"the socket {name!r} handed over {mistake}")
    return HandedOver(sock, None if name == METRICS else path)


def _mistake(name: str, sock: socket.socket, path: Path | None, *, is_listening: bool) -> str:
    """What is wrong with a socket, and its remedy; "" if nothing is."""
    is_stream = sock.type == socket.SOCK_STREAM
    if name == METRICS:
        is_tcp = is_stream and sock.family in (socket.AF_INET, socket.AF_INET6)
        return "" if is_tcp and is_listening else "is not a listening TCP socket"
    if sock.family == socket.AF_UNIX and is_stream and is_listening:
        return "" if path else "has no path: give ListenStream= the path of a file"
    text = "is not a listening Unix stream socket"
    if is_stream and not is_listening:
        return f"{text} but a connection: set Accept=no in its unit"
    if is_stream:
        return f"{text}: only one with FileDescriptorName={METRICS} may have a network address"
    return f"{text}: use ListenStream= with a path"


def paths(handed: Mapping[str, HandedOver]) -> dict[str, Path | None]:
    """The sockets' paths by name, for the configuration."""
    return {name: taken.path for name, taken in handed.items()}

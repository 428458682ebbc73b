"""Listening sockets that the service manager opened for us.

By name (FileDescriptorName=), "control" is the control socket and "metrics" the metrics listener;
any other is the front-end socket. Their files belong to the service manager and are never removed
here.
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
    """Take the sockets that were handed over, by name.

    Raises OperatorError for anything that does not listen; at a restart it is skipped with a
    warning.
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
    if name in found:
        taken.sock.close()
        raise OperatorError(f"two sockets named {name!r} were handed over")
    found[name] = taken


def _take(name: str, fd: OwnedFd) -> HandedOver:
    try:
        sock = socket.socket(fileno=fd.fileno())
        fd.detach()
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise OperatorError(f"the descriptor {name!r} handed over: {error.strerror}") from None
    families = (socket.AF_INET, socket.AF_INET6) if name == METRICS else (socket.AF_UNIX,)
    if sock.family not in families or sock.type != socket.SOCK_STREAM or not listens:
        sock.close()
        kind = "TCP" if name == METRICS else "Unix stream"
        raise OperatorError(f"the descriptor {name!r} handed over is not a listening {kind} socket")
    path = socket_path(sock) if name != METRICS else None
    if path is None and name != METRICS:
        sock.close()
        raise OperatorError(f"the socket {name!r} handed over has no path")
    return HandedOver(sock, path)


def paths(handed: Mapping[str, HandedOver]) -> dict[str, Path | None]:
    """The sockets' paths by name, for the configuration."""
    return {name: taken.path for name, taken in handed.items()}

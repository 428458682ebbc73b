"""Listens for scrapes: on one port, at every address of a host."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final

import trio

EVERYWHERE: Final = "*"
"""The host that means all addresses of this machine, of all families that it has."""

_ABSENT: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
"""Errors for an address that this machine does not have."""

_ATTEMPTS: Final = 10
"""Ports to try for port 0, as a free port of one address may be in use at another."""

_Address = tuple[socket.AddressFamily, Any]
"""A family, and an address in the form of its sockets."""


def _listen(sock: socket.socket) -> None:
    sock.listen(socket.SOMAXCONN)


async def open_listeners(host: str, port: int) -> list[trio.SocketListener]:
    """Listen on all addresses of host, on the same port; 0 is any free port.

    host: an address, a name or EVERYWHERE. An IPv6 address may have a zone; `::` includes IPv4. If
    a host has several addresses, those that this machine does not have are skipped. Raises OSError
    or UnicodeError.
    """
    addresses = await _resolve(host, port)
    attempts = 1 if port else _ATTEMPTS
    while True:
        attempts -= 1
        try:
            sockets = _bind_to_all(addresses, port, _listen)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not attempts:
                raise
        else:
            return [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in sockets]


async def check_address(host: str, port: int) -> None:
    """Raise the OSError or UnicodeError that open_listeners() would, except for a port in use."""
    addresses = await _resolve(host, port)
    try:
        sockets = _bind_to_all(addresses, port, lambda sock: None)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
    else:
        for sock in sockets:
            sock.close()


async def _resolve(host: str, port: int) -> list[_Address]:
    found = await trio.socket.getaddrinfo(
        None if host == EVERYWHERE else host,
        port,
        type=socket.SOCK_STREAM,
        flags=socket.AI_PASSIVE,
    )
    # An address is found twice if its line is in /etc/hosts twice.
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _bind_to_all(
    addresses: Sequence[_Address], port: int, then: Callable[[socket.socket], None]
) -> list[socket.socket]:
    absent: OSError | None = None
    sockets: list[socket.socket] = []
    with ExitStack() as opened:
        for family, address in addresses:
            host, _, *flow_and_zone = address
            try:
                sock = _bind(family, (host, port, *flow_and_zone), alone=len(addresses) == 1)
                opened.enter_context(sock)
                then(sock)
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                absent = error
            else:
                sockets.append(sock)
                port = sock.getsockname()[1]
        if absent is not None and not sockets:
            raise absent
        opened.pop_all()
    return sockets


def _bind(family: socket.AddressFamily, address: tuple[Any, ...], *, alone: bool) -> socket.socket:
    """alone: there is no separate socket for IPv4, so `::` serves both families."""
    with ExitStack() as opened:
        sock = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not alone)
        sock.bind(address)
        opened.pop_all()
    return sock

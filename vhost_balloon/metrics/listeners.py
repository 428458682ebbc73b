"""Listens for scrapes: one port, on every address that a host stands for."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, Final

import trio

EVERYWHERE: Final = "*"
"""The host that stands for all addresses of this machine, of whichever families it has."""

_ABSENT: Final = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
"""How an address is refused that this machine does not have."""

_ATTEMPTS: Final = 10
"""How many ports are tried where any will do and a later address has it taken."""

_Address = tuple[socket.AddressFamily, Any]
"""A family, and an address as its sockets take it."""


def _listen(sock: socket.socket) -> None:
    sock.listen(socket.SOMAXCONN)


async def open_listeners(host: str, port: int) -> list[trio.SocketListener]:
    """Listen on the addresses of host, all on the same port; 0 is any free one.

    host: an address, a name or EVERYWHERE. An IPv6 address may have a zone, and `::` takes IPv4 as
    well. Where a host has several addresses, those that this machine has not are left out. Raises
    OSError or UnicodeError.
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
    """Whether open_listeners() could listen, apart from a port that is in use. Raises OSError or
    UnicodeError."""
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
    # The same address may be found twice, as a line of /etc/hosts may be there twice.
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
    """alone: there is no socket for IPv4 beside it, so one for `::` is for both."""
    with ExitStack() as opened:
        sock = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not alone)
        sock.bind(address)
        opened.pop_all()
    return sock

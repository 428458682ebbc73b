"""The addresses that the metrics server listens on."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.scrapes import GET, connect, no_vms, port, read_all, serving
from vhost_balloon.containment import InternalErrors
from vhost_balloon.errors import OperatorError
from vhost_balloon.metrics import listeners as metrics_listeners
from vhost_balloon.metrics.listeners import open_listeners
from vhost_balloon.metrics.options import MetricsOptions
from vhost_balloon.metrics.server import MetricsServer

IPV6 = Path("/proc/net/if_inet6")
"""The kernel's list of its IPv6 addresses; missing or empty without IPv6."""


def ipv6_addresses() -> list[list[str]]:
    """Address, interface number, prefix length, scope, flags and interface of each."""
    return [line.split() for line in IPV6.read_text().splitlines()] if IPV6.exists() else []


needs_ipv6 = pytest.mark.skipif(not ipv6_addresses(), reason="no IPv6 here")


class Names(trio.abc.HostnameResolver):
    """Resolves one name to some addresses."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        assert host == b"name.example"
        return [
            found
            for address in self._addresses
            for found in socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
        ]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


def known_as(*addresses: str) -> str:
    """A name that resolves to these addresses in this test."""
    trio.socket.set_custom_hostname_resolver(Names(*addresses))
    return "name.example"


def hosts(listeners: Sequence[trio.SocketListener]) -> list[str]:
    """The addresses of listeners, which all have the same port; closes the sockets."""
    names = [listener.socket.getsockname() for listener in listeners]
    for listener in listeners:
        listener.socket.close()
    assert len({name[1] for name in names}) == 1
    assert names[0][1] != 0
    return [name[0] for name in names]


async def scrape(server: MetricsServer, host: str) -> bool:
    async with await connect(server, host) as client:
        await client.send_all(GET)
        return (await read_all(client)).startswith(b"HTTP/1.1 200 OK")


@needs_ipv6
@pytest.mark.parametrize("host", ["::", "*"])
async def test_the_unspecified_address_is_for_both_families(host: str) -> None:
    async with serving(MetricsOptions(host, 0)) as server:
        assert await scrape(server, "127.0.0.1")
        assert await scrape(server, "::1")
        assert {port(server)} == {int(url.split(":")[-1].split("/")[0]) for url in server.urls()}


async def test_a_family_may_be_chosen() -> None:
    async with serving(MetricsOptions("0.0.0.0", 0)) as server:
        assert await scrape(server, "127.0.0.1")
        with pytest.raises(OSError, match=r"failed|refused|unreachable"):
            await scrape(server, "::1")


@needs_ipv6
@pytest.mark.parametrize(("host", "other"), [("::1", "127.0.0.1"), ("::ffff:127.0.0.1", "::1")])
async def test_one_address_is_one_address(host: str, other: str) -> None:
    async with serving(MetricsOptions(host, 0)) as server:
        assert server.urls() == [f"http://[{host}]:{port(server)}/metrics"]
        assert await scrape(server, host)
        with pytest.raises(OSError, match=r"failed|refused"):
            await scrape(server, other)


@needs_ipv6
async def test_all_addresses_of_a_name_on_one_port() -> None:
    name = known_as("127.0.0.1", "::1", "127.0.0.2")
    assert hosts(await open_listeners(name, 0)) == ["127.0.0.1", "::1", "127.0.0.2"]


@pytest.mark.parametrize(
    "addresses",
    [
        *(["127.0.0.1", "127.0.0.1"], ["192.0.2.1", "127.0.0.1"], ["127.0.0.1", "192.0.2.1"]),
        ["127.0.0.1", "2001:db8::1"],
    ],
)
async def test_addresses_of_a_name_that_are_left_out(addresses: list[str]) -> None:
    """Duplicates, and addresses that this machine does not have."""
    assert hosts(await open_listeners(known_as(*addresses), 0)) == ["127.0.0.1"]


@pytest.mark.parametrize(
    "host",
    [
        *("192.0.2.1", "name.invalid", "x" * 80, "::ffff:192.0.2.1", "2001:db8::1", "a..b"),
        *("fe80::1%lo", "fe80::1%nothing", "fe80::1", "\udcff"),
    ],
)
async def test_addresses_that_are_not_ours(host: str) -> None:
    with pytest.raises(OperatorError, match=r"^cannot listen on ") as error:
        await MetricsServer.open(MetricsOptions(host, 9100), no_vms, InternalErrors())
    assert "\n" not in str(error.value)


async def test_a_name_without_an_address_here() -> None:
    with pytest.raises(OperatorError, match=r"name\.example:0: Cannot assign requested address$"):
        await MetricsServer.open(
            MetricsOptions(known_as("192.0.2.1", "2001:db8::1"), 0), no_vms, InternalErrors()
        )


async def test_a_zone() -> None:
    """A link-local address belongs to its interface."""
    local = [fields for fields in ipv6_addresses() if fields[3] == "20" and fields[4] == "80"]
    if not local:
        pytest.skip("no link-local address here")
    digits, interface = local[0][0], local[0][5]
    address = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits)) + f"%{interface}"
    async with serving(MetricsOptions(address, 0)) as server:
        assert server.urls() == [f"http://[{address}]:{port(server)}/metrics"]
        assert await scrape(server, address)


# Without IPv6, and with ports taken

listen = metrics_listeners._bind


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
async def test_where_ipv6_is_not_available(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def only_ipv4(family: socket.AddressFamily, address: Any, *, alone: bool) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(number, os.strerror(number))
        return listen(family, address, alone=alone)

    monkeypatch.setattr(metrics_listeners, "_bind", only_ipv4)
    assert hosts(await open_listeners("*", 0)) == ["0.0.0.0"]
    assert hosts(await open_listeners(known_as("::1", "127.0.0.1"), 0)) == ["127.0.0.1"]
    with pytest.raises(OperatorError) as error:
        await MetricsServer.open(MetricsOptions("::", 9100), no_vms, InternalErrors())
    assert str(error.value) == f"cannot listen on [::]:9100: {os.strerror(number)}"


@pytest.mark.parametrize("host", ["*", "0.0.0.0", "127.0.0.1"])
async def test_a_port_that_is_taken(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(OperatorError) as error:
            await MetricsServer.open(MetricsOptions(host, number), no_vms, InternalErrors())
        assert str(error.value) == f"cannot listen on {host}:{number}: Address already in use"
    for listener in await open_listeners(host, number):  # nothing still listens
        listener.socket.close()


async def test_another_port_is_tried_if_one_address_has_it_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []

    def taken(family: socket.AddressFamily, address: Any, *, alone: bool) -> socket.socket:
        asked.append(address[1])
        if len(asked) in free:
            return listen(family, address, alone=alone)
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))

    monkeypatch.setattr(metrics_listeners, "_bind", taken)
    name = known_as("127.0.0.1", "127.0.0.2")
    free = {1, 3, 4}  # the first attempt fails at its second address
    assert hosts(await open_listeners(name, 0)) == ["127.0.0.1", "127.0.0.2"]
    assert [bool(each) for each in asked] == [False, True, False, True]
    asked.clear()
    free = set()
    with pytest.raises(OSError, match="in use"):
        await open_listeners(name, 0)
    assert len(asked) == metrics_listeners._ATTEMPTS
    asked.clear()
    with pytest.raises(OSError, match="in use"):
        await open_listeners(name, 9750)
    assert asked == [9750]

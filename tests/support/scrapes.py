"""Scrapes of VMs with fake front ends, and their text read back."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing
from typing import Final, cast

import trio
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from protocol.qmp import Object
from tests.support.control_client import MemoryListener
from vhost_balloon.containment import InternalErrors
from vhost_balloon.control.report import describe_vm
from vhost_balloon.metrics.exposition import Exposition, Rows
from vhost_balloon.metrics.options import MetricsOptions
from vhost_balloon.metrics.server import MetricsServer
from vhost_balloon.vm.settings import VmSettings
from vhost_balloon.vm.vm import Vm

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""Values by name and labels."""

OPENMETRICS: Final = (
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"
)
"""Prometheus' Accept header, shortened."""

GET: Final = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


Vms = dict[str, Vm]


def two_vms() -> Vms:
    """web1 and web2 without front ends."""
    return {name: Vm(name, VmSettings(offered=0)) for name in ("web1", "web2")}


def snapshots(vms: Vms) -> list[tuple[str, Object]]:
    return [(vm.id, describe_vm(vm.statistics())) for vm in vms.values()]


def exposition(vms: Vms) -> Exposition:
    async def ask() -> Rows:
        return snapshots(vms)

    return Exposition(ask)


async def no_vms() -> Rows:
    return ()


def samples(families: Iterable[Metric]) -> Samples:
    found: Samples = {}
    for family in families:
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


async def scrape(vms: Vms) -> Samples:
    body, _ = await exposition(vms).render("")
    return samples(text_string_to_metric_families(body.decode()))


@asynccontextmanager
async def serving(options: MetricsOptions | None = None) -> AsyncIterator[MetricsServer]:
    """A server of two VMs without front ends."""
    vms = two_vms()

    async def ask() -> Rows:
        return snapshots(vms)

    options = options or MetricsOptions("127.0.0.1", 0)
    server = await MetricsServer.open(options, ask, InternalErrors())
    with closing(server):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            yield server
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def serving_in_memory() -> AsyncIterator[MemoryListener]:
    """A server of two VMs whose clients are in memory, so that an autojump clock can be used."""
    vms, listener = two_vms(), MemoryListener()

    async def ask() -> Rows:
        return snapshots(vms)

    listeners = cast(list[trio.SocketListener], [listener])
    server = MetricsServer(ask, listeners, InternalErrors())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        yield listener
        nursery.cancel_scope.cancel()


def port(server: MetricsServer) -> int:
    return int(server.urls()[0].rpartition(":")[2].removesuffix("/metrics"))


async def connect(server: MetricsServer, host: str = "127.0.0.1") -> trio.SocketStream:
    return await trio.open_tcp_stream(host, port(server))


async def read_all(stream: trio.abc.Stream) -> bytes:
    data = b""
    with trio.fail_after(10):
        while more := await stream.receive_some():
            data += more
    return data


async def ask(
    server: MetricsServer, request: bytes, tls: ssl.SSLContext | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer, which ends the connection.

    Raises trio.BrokenResourceError without an answer.
    """
    stream: trio.abc.Stream = await connect(server)
    if tls is not None:
        assert isinstance(stream, trio.SocketStream)
        stream = trio.SSLStream(stream, tls, server_hostname="localhost", https_compatible=True)
    async with stream:
        await stream.send_all(request)
        answer = await read_all(stream)
    if not answer:
        raise trio.BrokenResourceError("no answer")
    return read_answer(answer)


def read_answer(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), dict(line.split(": ", 1) for line in lines), body

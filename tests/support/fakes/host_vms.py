"""Fake control sockets of VMs for the hub: good and all kinds of bad ones."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import trio
from prometheus_client.parser import text_string_to_metric_families

from protocol.virtio_balloon import Queue, StatTag
from tests.support.helpers import GIB
from tests.support.scrapes import Samples, samples
from vhost_balloon.containment import InternalErrors
from vhost_balloon.control.report import describe_vm
from vhost_balloon.errors import RingErrorReason
from vhost_balloon.figures.counters import Counters
from vhost_balloon.figures.statistics import HugePages, VmState
from vhost_balloon.hub.vms import HUB_PLACES, Host
from vhost_balloon.metrics.exposition import Exposition, Rows
from vhost_balloon.vm.snapshot import VmStatistics

Behaviour = Callable[[trio.SocketStream], Awaitable[None]]

GREETING: Final = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
DONE: Final = b'{"return": {}}\r\n'
EVENT: Final = b'{"event": "BALLOON_CHANGE", "data": {"actual": 1}, "timestamp": {}}\r\n'


def full_document(number: int = 1) -> dict[str, Any]:
    """A real daemon's document of a VM with every value known; number: tells VMs apart."""
    counters = Counters(freed_bytes=number << 20)
    counters.refuse("poison", 8192)
    counters.requests[Queue.INFLATE] = 7
    counters.ring_errors["stats", RingErrorReason.LOOP] += 2
    counters.discard_seconds.observe(0.002)
    known = VmStatistics(
        "web1", True, counters, guest_memory=GIB, target=GIB, actual=GIB, resident=4096,
        driver_ready=True, state=VmState.DONE, pause_reasons=("operator",),
        stats={tag: number * 1000 + tag for tag in StatTag}, stats_age=1.5, stats_taken=2.5,
        stats_actual=GIB, held=True, held_for=3.5, report_rate=5,
        huge_pages=HugePages(2, 3, 8192), internal_errors={"events": 1},
    )  # fmt: skip
    return json.loads(json.dumps(describe_vm(known)))  # type: ignore[no-any-return]


def reply(value: object) -> bytes:
    return json.dumps({"return": value}).encode() + b"\r\n"


def answering(answer: bytes, *, after: bytes = b"") -> Behaviour:
    """A daemon that speaks QMP and replies to query-vms with answer."""

    async def behave(stream: trio.SocketStream) -> None:
        await stream.send_all(GREETING)
        data = b""
        while more := await stream.receive_some(4096):
            *requests, data = (data + more).split(b"\n")
            for request in requests:
                await stream.send_all(DONE if b"qmp_capabilities" in request else answer + after)

    return behave


def good(number: int = 1) -> Behaviour:
    return answering(reply([full_document(number)]))


def saying(*pieces: bytes) -> Behaviour:
    """Send these in turn whatever the requests, then stay silent."""

    async def behave(stream: trio.SocketStream) -> None:
        for piece in pieces:
            await stream.send_all(piece)
        await trio.sleep_forever()

    return behave


def breaking_off(*pieces: bytes) -> Behaviour:
    async def behave(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        for piece in pieces:
            await stream.send_all(piece)

    return behave


def endless(start: bytes, piece: bytes) -> Behaviour:
    """Send without end, as fast as the hub reads."""

    async def behave(stream: trio.SocketStream) -> None:
        await stream.send_all(start)
        while True:
            await stream.send_all(piece)

    return behave


def dripping(data: bytes) -> Behaviour:
    """Send a byte every 300 ms."""

    async def behave(stream: trio.SocketStream) -> None:
        for byte in data:
            await stream.send_all(bytes([byte]))
            await trio.sleep(0.3)

    return behave


@asynccontextmanager
async def daemons(folder: Path, behaviours: Mapping[str, Behaviour]) -> AsyncIterator[None]:
    """Serve a control socket in folder for each VM."""
    async with trio.open_nursery() as nursery:
        for name, behave in behaviours.items():
            nursery.start_soon(serve, listen(folder / f"{name}.control"), behave)
        yield
        nursery.cancel_scope.cancel()


def listen(path: Path, backlog: int = 5) -> trio.SocketListener:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    sock.listen(backlog)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def serve(listener: trio.SocketListener, behave: Behaviour) -> None:
    """Serve until cancelled, which closes all connections and the listener."""

    async def client(stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await behave(stream)

    await trio.serve_listeners(client, [listener])


# The hub's metrics of them


def host_of(*folders: Path, most: int = 100) -> Host:
    return Host(folders, InternalErrors(HUB_PLACES), most)


async def figures(host: Host) -> Samples:
    """The values of a scrape."""
    body, _ = await Exposition(host.snapshots).render("")
    return samples(text_string_to_metric_families(body.decode()))


def of_vm(found: Samples, vm: str) -> dict[tuple[Any, ...], float]:
    """A VM's values, without its name."""
    return {
        (name, *(label for label in labels if label[0] != "vm")): value
        for (name, labels), value in found.items()
        if ("vm", vm) in labels
    }


async def complete(number: int = 1) -> dict[tuple[Any, ...], float]:
    """All values of full_document(), as from the metrics address of its daemon."""

    async def ask() -> Rows:
        return [("x", full_document(number))]

    body, _ = await Exposition(ask).render("")
    return of_vm(samples(text_string_to_metric_families(body.decode())), "x")


DOWN = {("vhost_balloon_up",): 0.0}

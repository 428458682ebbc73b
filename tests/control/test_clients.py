"""The control socket: events, misbehaving clients and failing commands."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.support.control_client import (
    Client,
    MemoryListener,
    change,
    request,
)
from tests.support.end_to_end import LogLines
from vhost_balloon.control.events import INTERVAL
from vhost_balloon.control.server import serve_control
from vhost_balloon.qmp_server.command import Command, Parameter
from vhost_balloon.vm.vm import Vm

# BALLOON_CHANGE


async def test_balloon_change_is_throttled(
    client: Client, vm: Vm, autojump_clock: trio.testing.MockClock
) -> None:
    """The first at once, then the last of each second; after a quiet second at once again."""
    started = trio.current_time()
    for actual in (1, 2, 3):
        change(vm, actual)
    first = await client.read()
    assert first.keys() == {"event", "data", "timestamp"}
    assert first["event"] == "BALLOON_CHANGE"
    assert first["data"] == {"actual": 1, "id": "web1"}
    assert trio.current_time() == started
    assert (await client.read())["data"]["actual"] == 3
    assert trio.current_time() == started + 1
    await trio.sleep(0.5)
    change(vm, 4)
    assert (await client.read())["data"]["actual"] == 4
    assert trio.current_time() == started + 2
    await trio.sleep(5)
    change(vm, 5)
    assert (await client.read())["data"]["actual"] == 5
    assert trio.current_time() == started + 7


async def test_a_held_event_keeps_the_time_of_its_change(
    client: Client, vm: Vm, autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("time.time", lambda: 100.25)
    change(vm, 1)
    monkeypatch.setattr("time.time", lambda: 200.5)
    change(vm, 2)
    monkeypatch.setattr("time.time", lambda: 300.0)
    assert (await client.read())["timestamp"] == {"seconds": 100, "microseconds": 250000}
    assert (await client.read())["timestamp"] == {"seconds": 200, "microseconds": 500000}


async def test_a_change_is_not_sent_once_its_front_end_is_gone(
    client: Client, vm: Vm, autojump_clock: trio.testing.MockClock
) -> None:
    change(vm, 1)
    assert (await client.read())["data"]["actual"] == 1
    change(vm, 2)
    vm.front_end = None
    await trio.sleep(10)
    change(vm, 3)
    assert (await client.read())["data"]["actual"] == 3


async def test_events_wait_for_negotiation(server: MemoryListener, client: Client, vm: Vm) -> None:
    late = server.connect()
    await late.read()
    change(vm, 1)
    assert (await client.read())["event"] == "BALLOON_CHANGE"
    assert await late.execute("qmp_capabilities") == {}
    assert await late.execute("query-version")


async def test_no_event_overtakes_the_reply_that_ends_negotiation(
    server: MemoryListener, vm: Vm, autojump_clock: trio.testing.MockClock
) -> None:
    """QEMU's Python client takes the first message for that reply."""
    for steps in range(12):
        client = server.connect()
        await client.read()
        await client.stream.send_all(request("qmp_capabilities"))
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        change(vm, steps)
        assert await client.read() == {"return": {}}
        await trio.sleep(2 * INTERVAL)  # so that the next event is not held


async def test_changes_after_the_servers_end_are_ignored(vm: Vm) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, MemoryListener(), vm)
        nursery.cancel_scope.cancel()
    change(vm, 1)
    assert vm.internal_errors.counts["events"] == 0


# Rude clients


async def test_pipelined_requests_are_answered_in_order(server: MemoryListener) -> None:
    client = server.connect()
    numbered = [b'{"execute":"query-version","id":%d}' % number for number in range(500)]
    await client.stream.send_all(request("qmp_capabilities") + b"".join(numbered))
    await client.stream.send_eof()
    replies = await client.read_to_end()
    assert [reply["id"] for reply in replies[2:]] == list(range(500))


@pytest.mark.parametrize("rest", [b"", b'{"execute":"query-vms","id":9', b"5"])
async def test_a_half_closed_client_gets_all_its_replies(
    server: MemoryListener, rest: bytes
) -> None:
    client = server.connect()
    await client.stream.send_all(request("qmp_capabilities") + request("query-vms") + rest)
    await client.stream.send_eof()
    greeting, *replies = await client.read_to_end()
    assert "QMP" in greeting
    assert [next(iter(reply)) for reply in replies] == ["return", "return"]


async def test_a_client_that_never_reads_affects_no_other(
    server: MemoryListener, client: Client, vm: Vm, nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
) -> None:  # fmt: skip
    """Its requests wait. Its events do not accumulate, and it finally gets the last one."""
    rude = server.connect(lockstep=True)
    await rude.negotiate()
    nursery.start_soon(rude.stream.send_all, request("query-vms") + request("query-version"))
    await trio.testing.wait_all_tasks_blocked()
    for number in range(1, 51):
        change(vm, number)
        assert (await client.read())["data"]["actual"] == number
        assert await client.execute("query-balloon") == {"actual": number}
        await trio.sleep(2)
    messages = [await rude.read() for _ in range(3)]
    events = [message["data"]["actual"] for message in messages if "event" in message]
    assert events == [50]


async def test_a_slow_client_can_miss_events_but_not_the_last(
    server: MemoryListener, vm: Vm, autojump_clock: trio.testing.MockClock
) -> None:
    slow = server.connect(lockstep=True)
    await slow.negotiate()
    for number in range(1, 6):
        change(vm, number)
        await trio.sleep(2)
    assert [(await slow.read())["data"]["actual"] for _ in range(2)] == [1, 5]


async def test_a_client_that_vanishes_only_ends_itself(
    server: MemoryListener, client: Client, vm: Vm
) -> None:
    for negotiated in (False, True):
        gone = server.connect(lockstep=True)
        if negotiated:
            await gone.negotiate()
            change(vm, 1)
            await client.read()
        await gone.stream.aclose()
    await trio.testing.wait_all_tasks_blocked()
    assert await client.execute("query-version")


# The table of commands


@asynccontextmanager
async def serving(vm: Vm, **commands: Command[Vm]) -> AsyncIterator[Client]:
    """A client of a server with these commands."""
    listener = MemoryListener()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_control, listener, vm, commands=commands))
        client = listener.connect()
        await client.negotiate()
        yield client
        nursery.cancel_scope.cancel()


async def test_a_command_may_wait(vm: Vm, autojump_clock: trio.testing.MockClock) -> None:
    async def wait(vm: Vm, arguments: dict[str, Any]) -> Any:
        await trio.sleep(arguments["seconds"])
        return arguments

    async with serving(vm, wait=Command(wait, (Parameter("seconds", "int"),))) as client:
        assert await client.execute("wait", seconds=3) == {"seconds": 3}
        assert trio.current_time() >= 3


@pytest.mark.parametrize("bug", [RuntimeError, trio.BrokenResourceError, trio.ClosedResourceError])
async def test_a_bug_in_a_command_is_logged_and_ends_only_its_client(
    vm: Vm, log_lines: LogLines, bug: type[Exception]
) -> None:
    def crash(vm: Vm, arguments: dict[str, Any]) -> Any:
        raise bug("ours")

    async with trio.open_nursery() as nursery:
        listener = MemoryListener()
        start = partial(serve_control, commands={"crash": Command(crash)})
        await nursery.start(start, listener, vm)
        crashing, other = listener.connect(), listener.connect()
        for client in (crashing, other):
            await client.negotiate()
        await crashing.stream.send_all(request("crash"))
        assert await crashing.read_to_end() == []
        assert len(await other.execute("query-commands")) > 1
        nursery.cancel_scope.cancel()
    assert vm.internal_errors.counts["control-client"] == 1
    (line,) = log_lines.having("warning: internal error in control-client", "Traceback", "ours")
    assert bug.__name__ in line


# Real sockets


@pytest.fixture
async def path(vm: Vm, tmp_path: Path, nursery: trio.Nursery) -> Path:
    path = tmp_path / "control.sock"
    listening = trio.socket.socket(socket.AF_UNIX)
    await listening.bind(str(path))
    listening.listen(300)
    await nursery.start(serve_control, trio.SocketListener(listening), vm)
    return path


async def connect(path: Path) -> Client:
    return Client(await trio.open_unix_socket(str(path)))


async def test_200_clients_at_once(path: Path, vm: Vm) -> None:
    clients = [await connect(path) for _ in range(200)]
    await _each(clients, Client.negotiate)
    change(vm, 7)
    assert [(await client.read())["data"]["actual"] for client in clients] == [7] * 200
    assert [await client.execute("query-balloon") for client in clients] == [{"actual": 7}] * 200
    await _each(clients, lambda client: client.stream.aclose())


async def _each(clients: list[Client], action: Callable[[Client], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(action, client)


async def test_a_line_of_10_mb_is_refused_and_the_client_continues(path: Path) -> None:
    client = await connect(path)
    await client.negotiate()
    async with trio.open_nursery() as nursery:
        line = b'{"execute":"' + b"x" * 10_000_000 + b'"}\n'
        nursery.start_soon(client.stream.send_all, line + request("query-version"))
        error = (await client.read())["error"]
        assert error == {"class": "GenericError", "desc": "request is longer than 65536 bytes"}
        assert "return" in await client.read()
    await client.stream.aclose()


async def test_a_flood_of_requests_without_a_reader_stops_only_itself(
    path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    rude = await connect(path)
    with trio.move_on_after(60) as scope:
        await rude.stream.send_all(b'{"execute":"query-version"}' * 1_000_000)
    assert scope.cancelled_caught  # the server has stopped reading
    polite = await connect(path)
    await polite.negotiate()
    assert await polite.execute("query-vms")
    await rude.stream.aclose()
    assert await polite.execute("query-vms")
    await polite.stream.aclose()

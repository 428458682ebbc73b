"""A connection without a message makes way for a front end that waits; no other ever does."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from protocol.vhost_user import HEADER, MAX_PAYLOAD_SIZE, VERSION, HeaderFlag, Request
from tests.support.end_to_end import Host, LogLines, serving
from tests.support.hostile.bad_requests import descriptors
from vhost_balloon.fds import OwnedFd
from vhost_balloon.front_end.connection import serve_front_end
from vhost_balloon.front_end.making_way import make_way
from vhost_balloon.front_end.transport import STALL_PATIENCE, Transport
from vhost_balloon.simulator.connection import Connection, connect_socket
from vhost_balloon.simulator.wire import BackEndGone
from vhost_balloon.store.shelf import Shelf
from vhost_balloon.vm.vm import Vm

FEATURES = HEADER.pack(Request.GET_FEATURES, VERSION, 0)
TABLE = HEADER.pack(Request.SET_MEM_TABLE, VERSION, 264) + bytes(264)
LONG = HEADER.pack(99, VERSION, 2 * MAX_PAYLOAD_SIZE) + bytes(2 * MAX_PAYLOAD_SIZE)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    async with serving(tmp_path) as found:
        yield found


@asynccontextmanager
async def connected(host: Host) -> AsyncIterator[Connection]:
    async with Connection(await connect_socket(host.path())) as connection:
        yield connection


async def ended(connection: Connection) -> None:
    """Wait until the back end has ended the connection."""
    with suppress(BackEndGone, BrokenPipeError, ConnectionResetError):
        while True:
            await connection.receive_reply()


async def is_served(connection: Connection) -> float:
    """The time at which the connection's message is answered."""
    assert await connection.get_u64(Request.GET_FEATURES)
    return trio.current_time()


NO_MESSAGE = {
    "nothing": b"",
    "one byte": FEATURES[:1],
    "half a header": FEATURES[:11],
    "a header": TABLE[:12],
    "half a message": TABLE[:-1],
    "half a long one": LONG[:-1],
}


@pytest.mark.parametrize("begun", NO_MESSAGE.values(), ids=NO_MESSAGE.keys())
@pytest.mark.parametrize("pause", [0.0, 9.9, 1000.0])
@pytest.mark.parametrize("fds", [0, 9])
async def test_a_connection_without_a_message(
    host: Host, autojump_clock: MockClock, log_lines: LogLines, begun: bytes, pause: float, fds: int
) -> None:
    """It stays until it is 10 s old, and then until somebody waits."""
    began = trio.current_time()
    async with connected(host) as stray:
        if begun:
            with descriptors(["eventfd"] * fds) as files:
                await stray.send_raw(begun, files)
        await trio.sleep(pause)
        async with connected(host) as other:
            due = max(pause, STALL_PATIENCE)
            assert await is_served(other) - began == pytest.approx(due, abs=0.2)
            await ended(stray)
            assert host.vm().counters.front_end_errors == 1
            lines = log_lines.having("warning: vm1", "no message came, and another front end waits")
            assert len(lines) == 1
            await trio.sleep(1000)
            await is_served(other)


MESSAGES = {
    "answered": FEATURES,
    "without a reply": HEADER.pack(Request.SET_OWNER, VERSION, 0),
    "refused": HEADER.pack(1000, VERSION | HeaderFlag.NEED_REPLY, 4) + bytes(4),
    "a reply": HEADER.pack(1, VERSION | HeaderFlag.REPLY, 0),
    "too long": LONG,
}


@pytest.mark.parametrize("data", MESSAGES.values(), ids=MESSAGES.keys())
@pytest.mark.parametrize("after", [b"", FEATURES[:5], TABLE[:-1]], ids=["", "header", "message"])
async def test_a_connection_with_a_message_is_never_ended(
    host: Host, autojump_clock: MockClock, data: bytes, after: bytes
) -> None:
    """Even if the message comes late, in parts, and nothing or half a message follows."""
    async with connected(host) as front_end:
        await trio.sleep(5)
        async with connected(host) as other:
            await front_end.send_raw(data[:7])
            await trio.sleep(4.9)
            await front_end.send_raw(data[7:])
            await front_end.send_raw(after)
            with trio.move_on_after(1000) as scope:
                await is_served(other)
            assert scope.cancelled_caught
            await front_end.send_raw((TABLE if after[:1] == TABLE[:1] else FEATURES)[len(after) :])
            if after != TABLE[:-1]:
                assert (await front_end.receive_reply()).request == Request.GET_FEATURES


async def test_a_message_that_comes_together_with_the_other(autojump_clock: MockClock) -> None:
    ours, theirs = socket.socketpair()
    with theirs, closing(Transport(OwnedFd(ours.detach()))) as transport:

        async def next_waits() -> None:
            await theirs_sock.send(FEATURES)
            assert await transport.receive()

        theirs_sock = trio.socket.from_stdlib_socket(theirs)
        await make_way(transport, next_waits, lambda: pytest.fail("it was ended"))


async def test_each_of_several_is_ended_in_turn(host: Host, autojump_clock: MockClock) -> None:
    began = trio.current_time()
    async with (
        connected(host) as first,
        connected(host) as second,
        connected(host) as third,
        connected(host) as other,
    ):
        assert await is_served(other) - began == pytest.approx(3 * STALL_PATIENCE, abs=0.5)
        for stray in (first, second, third):
            await ended(stray)


async def test_one_that_goes_by_itself_is_not_complained_about(
    host: Host, autojump_clock: MockClock, log_lines: LogLines
) -> None:
    async with connected(host):
        await trio.sleep(5)
    async with connected(host) as other:
        await is_served(other)
    assert not log_lines.having("warning")


async def test_without_a_listener_nobody_can_wait(autojump_clock: MockClock) -> None:
    """As with --fd."""
    vm = Vm("web1")
    vm.shelf = Shelf.create()
    ours, theirs = socket.socketpair()
    with ours:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_front_end, vm, OwnedFd(theirs.detach()), "x")
            await trio.sleep(1000)
            assert vm.attached
            assert vm.counters.front_end_stalls == 1
            nursery.cancel_scope.cancel()
    vm.close()

"""Streams that are not vhost-user, stop half-way, or exhaust descriptors, end to end."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.vhost_user import HEADER
from tests.support.end_to_end import (
    PAGE,
    LogLines,
    by_hand,
    eventually,
    is_refused,
    open_fds,
    serving,
    starts_over,
)
from tests.support.hostile.bad_requests import (
    G,
    R,
    descriptors,
    slot,
)
from vhost_balloon.simulator.connection import Connection, connect_socket
from vhost_balloon.simulator.wire import BackEndGone

# Streams


def header(flags: int = 1, size: int = 0) -> bytes:
    return HEADER.pack(R.SET_OWNER, flags, size)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param(header(flags=0), "flags 0x0", id="version 0"),
        pytest.param(header(flags=2), "flags 0x2", id="version 2"),
        pytest.param(header(flags=3), "flags 0x3", id="version 3"),
        pytest.param(header(flags=0x11), "flags 0x11", id="unknown flag"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", "flags", id="no vhost-user at all"),
        pytest.param(header()[:5], "inside a message", id="half a header"),
        pytest.param(header(size=8) + b"abc", "inside a message", id="half a payload"),
        pytest.param(header(size=(1 << 32) - 1) + b"abc", "inside", id="half of 4 GiB"),
    ],
)
async def test_a_stream_that_is_none_ends_its_connection_alone(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines, data: bytes, text: str
) -> None:
    async with serving(tmp_path) as host:
        await wait_all_tasks_blocked()
        before = open_fds()
        async with by_hand(host.path()) as guest:
            await guest.works(host.vm())
            with descriptors(["memfd", "socket"]) as fds:
                await guest.front_end.send_raw(data, fds)
            guest.front_end._sock.shutdown(socket.SHUT_WR)
            with pytest.raises(BackEndGone):
                await guest.front_end.receive_reply()
        await wait_all_tasks_blocked()
        assert log_lines.having("warning: vm1: connection ended: ", text)
        assert host.vm().counters.front_end_errors == 1
        assert (host.vm().attached, open_fds()) == (False, before)
        async with by_hand(host.path()) as guest:
            await guest.works(host.vm())


@pytest.mark.parametrize(
    "begun", [b"", header()[:5], header(size=8)[:12] + b"abc"], ids=["silent", "header", "payload"]
)
async def test_a_front_end_that_does_not_go_on_is_complained_about_once(
    tmp_path: Path, autojump_clock: MockClock, log_lines: LogLines, begun: bytes
) -> None:
    async with (
        serving(tmp_path) as host,
        Connection(await connect_socket(host.path())) as silent,
    ):
        if begun:
            await silent.send_raw(begun)
        await trio.sleep(9)
        assert host.vm().counters.front_end_stalls == 0
        await trio.sleep(112)
        assert host.vm().counters.front_end_stalls == 1
        assert len(log_lines.having("warning: vm1", "does not finish its message")) == 1
        # The stream may continue.
        await silent.send_raw((header(size=8) + bytes(8))[len(begun) :])
        assert await silent.get_u64(R.GET_FEATURES)
        await trio.sleep(100)
        assert host.vm().counters.front_end_stalls == 1


async def test_a_message_byte_by_byte_is_a_message(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, Connection(await connect_socket(host.path())) as raw:
        message = HEADER.pack(R.GET_FEATURES, 1, 0)
        for byte in message * 2:
            await raw.send_raw(bytes([byte]))
            await wait_all_tasks_blocked()
        for _ in range(2):
            assert (await raw.receive_reply()).request == R.GET_FEATURES
        await raw.send_raw(message * 100)  # and many in one write
        for _ in range(100):
            assert (await raw.receive_reply()).request == R.GET_FEATURES


@pytest.mark.parametrize("size", [8, 1 << 30])
async def test_descriptors_with_every_part_of_a_message(
    tmp_path: Path, still_clock: MockClock, size: int
) -> None:
    """None is held once they are more than eight: no request has more."""
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await wait_all_tasks_blocked()
        before = open_fds()
        with descriptors(["pipe"] * 8) as fds:
            message = HEADER.pack(R.SET_VRING_CALL, 9, size)
            ours = 2 * len(fds)  # with their other ends
            await guest.front_end.send_raw(message[:4], fds)
            await wait_all_tasks_blocked()
            assert (open_fds() - before)["pipe"] == ours + 8
            await guest.front_end.send_raw(message[4:], fds)
            for _ in range(7 if size == 8 else 50):
                await guest.front_end.send_raw(b"\0", fds)
                await wait_all_tasks_blocked()
            assert (open_fds() - before)["pipe"] == ours
            if size == 8:
                await guest.front_end.send_raw(b"\0")
                assert (await guest.front_end.receive_reply()).payload != bytes(8)
                await guest.works(host.vm())


async def test_a_front_end_that_goes_while_it_is_answered(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host:
        await wait_all_tasks_blocked()
        before = open_fds()
        for _ in range(5):
            raw = Connection(await connect_socket(host.path()))
            await raw.send_raw(HEADER.pack(R.GET_FEATURES, 1, 0) * 1000)
            raw.close()
            await wait_all_tasks_blocked()
        assert open_fds() == before
        assert not log_lines.having("warning")
        async with by_hand(host.path()) as guest:
            await guest.works(host.vm())


async def test_a_flood_of_bad_requests_does_not_fill_the_log(
    tmp_path: Path, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        for _ in range(2000):
            await guest.front_end.send(1000)
        await eventually(lambda: host.vm().counters.front_end_errors == 2000)
        assert len(log_lines.having("refused request 1000")) <= 20
        await starts_over(host.vm(), guest)


# Descriptors


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """This process can open nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    limit = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        while True:
            taken.append(os.eventfd(0))
    except OSError:
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_descriptors_that_do_not_fit(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        before = open_fds()
        with descriptors(["memfd"]) as fds, no_descriptors_left():
            assert await is_refused(guest.front_end, R.ADD_MEM_REG, slot(G, PAGE), *fds)
        assert log_lines.having("vm1: refused ADD_MEM_REG", "could not all be received")
        assert open_fds() == before
        await starts_over(host.vm(), guest)


async def test_a_front_end_waits_while_there_are_no_descriptors(
    tmp_path: Path, autojump_clock: MockClock, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host, trio.open_nursery() as nursery:
        await wait_all_tasks_blocked()
        served = trio.Event()
        sock = socket.socket(socket.AF_UNIX)

        async def connect() -> None:
            sock.connect(str(host.path()))
            connection = Connection(trio.socket.from_stdlib_socket(sock))
            async with connection:
                assert await connection.get_u64(R.GET_FEATURES)
                served.set()

        with no_descriptors_left():
            nursery.start_soon(connect)
            await trio.sleep(5)
            assert not served.is_set()
        await served.wait()
        assert log_lines.having("warning: vm1: front end has to wait")
        assert len(log_lines.lines) < 20

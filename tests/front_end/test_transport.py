"""The transport over a socket pair: descriptors stay with their message however bytes arrive."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from protocol.vhost_user import HEADER, MAX_TABLE_REGIONS, NO_FD, VERSION, Request
from tests.support.end_to_end import LogLines, open_fds
from tests.support.helpers import memfd
from vhost_balloon.fds import OwnedFd
from vhost_balloon.front_end.transport import SHELF_PAUSE, Transport
from vhost_balloon.session.message import carries_fds
from vhost_balloon.store.journal import Journal, Phase
from vhost_balloon.store.shelf import Shelf, shelf_name

Sent = tuple[int, bytes, int]
"""Request, payload, number of descriptors."""

KICK = (Request.SET_VRING_KICK, (1).to_bytes(8, "little"), 1)
NO_KICK = (Request.SET_VRING_KICK, (1 | NO_FD).to_bytes(8, "little"), 0)
FEATURES = (Request.GET_FEATURES, b"", 0)


def send(
    sock: socket.socket, sent: Sent, marks: list[int], cuts: Sequence[int], flags: int = 0
) -> None:
    """Send a message in parts, the descriptors with the first; each is a file of a unique size."""
    request, payload, count = sent
    data = HEADER.pack(request, VERSION, len(payload)) + payload
    files = [memfd(len(marks) + 1 + n) for n in range(count)]
    marks += [os.fstat(file.fileno()).st_size for file in files]
    first = min(cuts[0], len(data)) if cuts else len(data)
    socket.send_fds(sock, [data[:first]], [file.fileno() for file in files], flags)
    for start in range(first, len(data), max(cuts[-1], 1) if cuts else 1):
        sock.send(data[start : start + max(cuts[-1], 1)], flags)
    for file in files:
        file.close()


async def exchange(
    messages: Sequence[Sent],
    cuts: Sequence[Sequence[int]],
    shelf: Shelf | None = None,
    flags: Sequence[int] | None = None,
) -> None:
    """Send all messages, then receive them. flags: of sendmsg(2), for each message."""
    ours, theirs = socket.socketpair()
    journal = Journal(memoryview(bytearray(3 << 16)))
    with theirs:
        transport = Transport(OwnedFd(ours.detach()), shelf, journal)
        marks: list[int] = []
        for sent, parts, how in zip(messages, cuts, flags or [0] * len(cuts), strict=True):
            send(theirs, sent, marks, parts, how)
        for request, payload, count in messages:
            with trio.fail_after(5):
                message = await transport.receive()
            assert message is not None
            assert (message.request, message.payload) == (request, payload)
            found = [os.fstat(fd.fileno()).st_size for fd in message.fds]
            assert message.fds_lost == (len(found) < count)
            if message.fds_lost:  # its request is refused
                assert count > MAX_TABLE_REGIONS or not carries_fds(request, payload)
            assert found == marks[: len(found)]
            entry = journal.latest()
            assert entry is not None
            assert entry.phase is Phase.TAKEN
            assert entry.request == HEADER.pack(request, VERSION, len(payload)) + payload
            lost = ("lost",) if message.fds_lost else ()
            if shelf is not None:
                assert entry.names == (*map(shelf_name, message.fds), *lost)
            del marks[:count]
            message.close()
        transport.close()
    assert shelf is None or not shelf.users


@pytest.fixture(params=[False, True], ids=["alone", "shelf"])
def shelf(request: pytest.FixtureRequest) -> Iterator[Shelf | None]:
    with contextlib.closing(Shelf.create()) as shelf:
        yield shelf if request.param else None


@pytest.mark.parametrize(
    "messages",
    [
        [FEATURES, KICK],
        [NO_KICK, KICK],
        [KICK, KICK],
        [(Request.GET_FEATURES, b"", 2), KICK],
        [(Request.SET_VRING_KICK, KICK[1], 0), KICK],
        [(Request.SET_MEM_TABLE, bytes(8), 8), FEATURES, (Request.REM_MEM_REG, bytes(40), 1)],
        [(Request.SET_MEM_TABLE, bytes(8), 9), KICK],
        [(Request.SET_VRING_KICK, KICK[1], 253), NO_KICK, KICK],
        [(Request.SET_OWNER, b"", 253), FEATURES],
    ],
)
@pytest.mark.parametrize("cut", [(), (1,), (3, 7)], ids=["whole", "bytes", "parts"])
@pytest.mark.parametrize("flag", [0, socket.MSG_OOB], ids=["", "urgent"])
async def test_descriptors_stay_with_their_message(
    messages: list[Sent], cut: tuple[int, ...], flag: int, shelf: Shelf | None
) -> None:
    """Also if unexpected ones come, or an expected one is missing, or a byte is urgent."""
    await exchange(messages, [cut] * len(messages), shelf, [flag] * len(messages))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [Request.GET_FEATURES, Request.SET_VRING_KICK, Request.SET_MEM_TABLE, 99]
            ),
            st.binary(max_size=40),
            st.integers(0, 10),
            st.lists(st.integers(1, 30), max_size=2),
            st.sampled_from([0, socket.MSG_OOB]),
        ),
        max_size=6,
    )
)
def test_messages_in_any_parts(items: list[tuple[int, bytes, int, list[int], int]]) -> None:
    messages = [item[:3] for item in items]
    cuts, flags = [item[3] for item in items], [item[4] for item in items]
    with contextlib.closing(Shelf.create()) as shelf:
        trio.run(partial(exchange, messages, cuts, shelf, flags))


async def test_a_lone_urgent_byte_keeps_nobody_busy() -> None:
    """It arrives like any other byte. If it were skipped, the socket would stay readable."""
    ours, theirs = socket.socketpair()
    with theirs, contextlib.closing(Transport(OwnedFd(ours.detach()))) as transport:
        theirs.send(b"x", socket.MSG_OOB)
        with trio.move_on_after(0.1):
            await transport.receive()
        assert transport.partial is not None
        assert transport.partial.data == b"x"


class Counted:
    """A socket whose calls are counted by name."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        self.calls[name] += 1
        return getattr(self._sock, name)


async def test_a_message_without_descriptors_is_peeked_at_once_and_taken_once() -> None:
    """The guest waits for each system call."""
    ours, theirs = socket.socketpair()
    with theirs, contextlib.closing(Transport(OwnedFd(ours.detach()))) as transport:
        counted = Counted(transport._sock)
        vars(transport)["_sock"] = counted
        found = []
        for _ in range(20):
            send(theirs, FEATURES, [], ())
            counted.calls.clear()
            message = await transport.receive()
            assert message is not None
            await transport.reply(message.request, b"")
            found.append(counted.calls.copy())
        for calls in found[1:]:
            assert calls["recvmsg"] == 2
            assert not calls["recv"]
            assert calls["send"] == 1


# A shelf without room


class Waiting:
    """A front end whose message's descriptors find no room on the shelf."""

    def __init__(self, shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shelf = shelf
        self.is_full = True
        self.tries = 0
        self._put = shelf.put
        monkeypatch.setattr(shelf, "put", self.put)
        ours, self.theirs = socket.socketpair()
        self._look = ours.dup()
        self.transport = Transport(OwnedFd(ours.detach()), shelf)
        self.marks: list[int] = []

    def put(self, fds: list[OwnedFd]) -> list[OwnedFd]:
        self.tries += 1
        if self.is_full:
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        return self._put(fds)

    def in_socket(self) -> bytes:
        try:
            return self._look.recv(4096, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        self.transport.close()
        self._look.close()
        self.theirs.close()


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waiting]:
    with (
        contextlib.closing(Shelf.create()) as shelf,
        contextlib.closing(Waiting(shelf, monkeypatch)) as waiting,
    ):
        yield waiting


MEMORY = (Request.SET_MEM_TABLE, bytes(8), 3)
CUTS = pytest.mark.parametrize("cut", [(), (14, 2)], ids=["whole", "parts"])


@CUTS
async def test_a_message_waits_in_the_socket_until_the_shelf_has_room(
    waiting: Waiting, cut: tuple[int, ...], autojump_clock: MockClock, log_lines: LogLines
) -> None:
    send(waiting.theirs, MEMORY, waiting.marks, cut)
    sent, before = waiting.in_socket(), open_fds()
    with trio.move_on_after(1000) as scope:
        await waiting.transport.receive()
    assert scope.cancelled_caught
    assert waiting.in_socket() == sent
    assert open_fds() == before, "descriptors that were peeked at are closed"
    assert waiting.tries > 100
    assert len(log_lines.having("warning: a message has to wait: no room on the shelf")) <= 2
    waiting.is_full = False
    message = await waiting.transport.receive()
    assert message is not None
    assert [os.fstat(fd.fileno()).st_size for fd in message.fds] == waiting.marks
    assert not message.fds_lost
    assert waiting.in_socket() == b""
    message.close()


@CUTS
async def test_a_waiting_message_is_taken_soon_after_there_is_room(
    waiting: Waiting, cut: tuple[int, ...], autojump_clock: MockClock
) -> None:
    send(waiting.theirs, MEMORY, waiting.marks, cut)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:

        async def make_room() -> None:
            await trio.sleep(50)
            waiting.is_full = False

        nursery.start_soon(make_room)
        message = await waiting.transport.receive()
    assert message is not None
    assert len(message.fds) == 3
    assert 50 <= trio.current_time() - began < 50 + 2 * SHELF_PAUSE
    message.close()


@CUTS
async def test_a_front_end_that_goes_while_its_message_waits(
    waiting: Waiting, cut: tuple[int, ...], autojump_clock: MockClock
) -> None:
    send(waiting.theirs, MEMORY, waiting.marks, cut)
    before = open_fds()
    async with trio.open_nursery() as nursery:

        async def go() -> None:
            await trio.sleep(50)
            assert waiting.tries > 100
            waiting.theirs.close()

        nursery.start_soon(go)
        with pytest.raises(ConnectionError):
            await waiting.transport.receive()
    assert open_fds().total() == before.total() - 1


VRING_FDS = {"SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"}
OTHER_FDS = {"SET_MEM_TABLE", "SET_BACKEND_REQ_FD", "ADD_MEM_REG", "REM_MEM_REG"}


@pytest.mark.parametrize("request_", Request)
def test_which_requests_carry_descriptors(request_: Request) -> None:
    """SET_VRING_KICK, CALL and ERR have a bit for it in their payload."""
    assert carries_fds(request_, bytes(8)) is (request_.name in VRING_FDS | OTHER_FDS)
    assert carries_fds(request_, NO_FD.to_bytes(8, "little")) is (request_.name in OTHER_FDS)

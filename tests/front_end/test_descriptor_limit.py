"""Messages with more descriptors than any request has, and messages too long for the journal."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.vhost_user import HEADER, MAX_PAYLOAD_SIZE, MAX_TABLE_REGIONS, VERSION, Request
from tests.support.end_to_end import open_fds
from tests.support.helpers import memfd
from vhost_balloon.fds import OwnedFd
from vhost_balloon.front_end.transport import Transport
from vhost_balloon.session.message import Message, carries_fds
from vhost_balloon.store.journal import RESERVE, Journal
from vhost_balloon.store.shelf import Shelf

HALF = 3 << 15
FEATURES = HEADER.pack(Request.GET_FEATURES, VERSION, 0)
TABLE = HEADER.pack(Request.SET_MEM_TABLE, VERSION, 264) + bytes(264)
OWNER = HEADER.pack(Request.SET_OWNER, VERSION, 0)
UNKNOWN = HEADER.pack(1000, VERSION, 100) + bytes(100)
OVERSIZED = HEADER.pack(Request.SET_MEM_TABLE, VERSION, 3 * MAX_PAYLOAD_SIZE)
OVERSIZED += bytes(3 * MAX_PAYLOAD_SIZE)


class Talk:
    """A front end's socket, and the transport at its other end."""

    def __init__(self, shelf: Shelf, half: int = HALF) -> None:
        self.shelf = shelf
        self.journal = Journal(memoryview(bytearray(2 * half)))
        ours, self._theirs = socket.socketpair()
        self.transport = Transport(OwnedFd(ours.detach()), shelf, self.journal)
        self._files: list[OwnedFd] = []
        self.before: Counter[str] = open_fds()

    def send(self, data: bytes, count: int = 0) -> None:
        """Send bytes, with so many descriptors."""
        self._files += [memfd(1) for _ in range(count)]
        numbers = [file.fileno() for file in self._files[len(self._files) - count :]]
        socket.send_fds(self._theirs, [data], numbers)

    def held(self) -> int:
        """The descriptors that came and are still open at the transport's end."""
        return (open_fds() - self.before).total() - sum(not file.closed for file in self._files)

    async def receive(self) -> Message:
        with trio.fail_after(5):
            message = await self.transport.receive()
        assert message is not None
        return message

    def close(self) -> None:
        self.transport.close()
        self._theirs.close()
        for file in self._files:
            file.close()


@asynccontextmanager
async def talking(half: int = HALF) -> AsyncIterator[Talk]:
    with contextlib.closing(Shelf.create()) as shelf:
        with contextlib.closing(Talk(shelf, half)) as talk:
            yield talk
        assert not shelf.users


def cut(data: bytes, counts: Sequence[int]) -> Iterator[tuple[bytes, int]]:
    """Cut a message into as many parts as there are counts of descriptors, or fewer."""
    size = max(-(-len(data) // len(counts)), 1)
    for at, count in enumerate(counts):
        if part := data[at * size : (at + 1) * size]:
            yield part, count


PARTS: dict[str, list[int]] = {
    "9": [9],
    "250": [250],
    "5 + 5": [5, 5],
    "8 + 1": [8, 1],
    "1 + 8": [1, 8],
    "8 + 1 + 1": [8, 1, 1],
    "7 + 7": [7, 7],
    "0 + 9": [0, 9],
    "9 + 0": [9, 0],
    "3 + 0 + 3 + 0 + 3": [3, 0, 3, 0, 3],
    "12 x 1": [1] * 12,
    "12 x 250": [250] * 12,
}
MESSAGES = {"table": TABLE, "owner": OWNER, "unknown": UNKNOWN, "oversized": OVERSIZED}
CUT = {
    f"{name}-{parts}": (data, counts)
    for name, data in MESSAGES.items()
    for parts, counts in PARTS.items()
    if len(list(cut(data, counts))) == len(counts)  # a short message has not that many parts
}


@pytest.mark.parametrize(("data", "counts"), CUT.values(), ids=CUT.keys())
async def test_too_many_descriptors_are_closed_before_the_message_is_whole(
    data: bytes, counts: list[int]
) -> None:
    """None is held, and the next message is not affected."""
    parts = list(cut(data, counts))
    async with talking() as talk, trio.open_nursery() as nursery:
        received: list[Message] = []
        sent = 0

        async def receive() -> None:
            received.append(await talk.receive())

        nursery.start_soon(receive)
        for part, count in parts:
            sent += count
            for start in range(0, len(part), 65536):
                talk.send(part[start : start + 65536], count if start == 0 else 0)
                with trio.fail_after(5):
                    while talk.transport._look(1) is not None and not received:
                        await trio.lowlevel.checkpoint()
            await wait_all_tasks_blocked()
            assert talk.held() <= (sent if sent <= MAX_TABLE_REGIONS else 0)
        await wait_all_tasks_blocked()
        (message,) = received
        assert message.fds_lost
        assert (message.fds, talk.held()) == ([], 0)
        entry = talk.journal.latest()
        assert entry is not None
        assert entry.names == ("lost",)
        assert not talk.shelf.users
        talk.send(TABLE, MAX_TABLE_REGIONS)
        message = await talk.receive()
        assert (len(message.fds), message.fds_lost) == (MAX_TABLE_REGIONS, False)
        message.close()


async def test_once_there_were_too_many_none_is_held(still_clock: MockClock) -> None:
    """While the message is not whole, and however many follow."""
    async with talking() as talk, trio.open_nursery() as nursery:
        nursery.start_soon(talk.receive)
        for at in range(100):
            talk.send(UNKNOWN[at : at + 1], 1)
            await wait_all_tasks_blocked()
            assert talk.held() == len(talk.shelf.users) <= MAX_TABLE_REGIONS
            assert at < MAX_TABLE_REGIONS or not talk.held()
        assert talk.transport.partial is not None
        assert talk.transport.partial.fds_lost
        nursery.cancel_scope.cancel()


async def test_descriptors_of_the_next_message_do_not_count() -> None:
    """Linux shows them with the bytes before while these are only peeked at."""
    async with talking() as talk, trio.open_nursery() as nursery:
        received: list[Message] = []

        async def receive() -> None:
            for _ in range(2):
                received.append(await talk.receive())

        nursery.start_soon(receive)
        talk.send(TABLE[:100], 5)
        await wait_all_tasks_blocked()
        talk.send(TABLE[100:])
        talk.send(TABLE, 6)
        await wait_all_tasks_blocked()
        assert [(len(m.fds), m.fds_lost) for m in received] == [(5, False), (6, False)]
        for message in received:
            message.close()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([TABLE, OWNER, UNKNOWN, FEATURES]),
    st.lists(st.integers(0, 9), min_size=1, max_size=12),
)
def test_any_parts(data: bytes, counts: list[int]) -> None:
    async def exchange() -> None:
        parts = list(cut(data, counts))
        total = sum(count for _, count in parts)
        async with talking() as talk:
            for part, count in parts:
                talk.send(part, count)
            message = await talk.receive()
            request, _, _ = HEADER.unpack_from(data)
            if total > MAX_TABLE_REGIONS:
                assert (message.fds_lost, message.fds) == (True, [])
            elif not message.fds_lost:
                assert len(message.fds) == total
            else:
                assert total
                assert not carries_fds(request, message.payload)
            message.close()
            talk.send(FEATURES)
            assert (await talk.receive()).request == Request.GET_FEATURES

    trio.run(exchange)


# Too long for the journal


@pytest.mark.parametrize("beyond", [-1, 0, 1, 100, 5000])
@pytest.mark.parametrize("counts", [[0], [3], [2, 2], [5, 5]], ids=str)
async def test_a_message_that_does_not_fit_the_journal_is_skipped(
    beyond: int, counts: list[int]
) -> None:
    """It is refused like one that is too long for everybody; the next one is not affected."""
    async with talking(4096) as talk:
        longest = 4096 - 32 - RESERVE - 12
        assert talk.journal.longest == longest + 12
        payload = os.urandom(longest + beyond)
        data = HEADER.pack(Request.SET_MEM_TABLE, VERSION, len(payload)) + payload
        for part, count in cut(data, counts):
            talk.send(part, count)
        message = await talk.receive()
        assert message.oversized == (beyond > 0)
        assert message.payload == (b"" if beyond > 0 else payload)
        assert message.fds_lost == (sum(counts) > MAX_TABLE_REGIONS)
        entry = talk.journal.latest()
        assert entry is not None
        assert entry.request == data[: 12 if beyond > 0 else None]
        message.close()
        talk.send(FEATURES)
        assert (await talk.receive()).request == Request.GET_FEATURES

"""The transport over a socket pair: which descriptors are a message's, however bytes come."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from functools import partial

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.vhost_user import HEADER, NO_FD, VERSION, Request
from tests.helpers import memfd
from vhost_balloon.fds import OwnedFd
from vhost_balloon.message import carries_fds
from vhost_balloon.transport import Transport

Sent = tuple[int, bytes, int]
"""Request, payload, and how many descriptors come with it."""

KICK = (Request.SET_VRING_KICK, (1).to_bytes(8, "little"), 1)
NO_KICK = (Request.SET_VRING_KICK, (1 | NO_FD).to_bytes(8, "little"), 0)
FEATURES = (Request.GET_FEATURES, b"", 0)


def send(sock: socket.socket, sent: Sent, marks: list[int], cuts: Sequence[int]) -> None:
    """Send a message in parts; descriptors, each a file whose size is its mark, with the first."""
    request, payload, count = sent
    data = HEADER.pack(request, VERSION, len(payload)) + payload
    files = [memfd(len(marks) + 1 + n) for n in range(count)]
    marks += [os.fstat(file.fileno()).st_size for file in files]
    first = min(cuts[0], len(data)) if cuts else len(data)
    socket.send_fds(sock, [data[:first]], [file.fileno() for file in files])
    for start in range(first, len(data), max(cuts[-1], 1) if cuts else 1):
        sock.send(data[start : start + max(cuts[-1], 1)])
    for file in files:
        file.close()


async def exchange(messages: Sequence[Sent], cuts: Sequence[Sequence[int]]) -> None:
    """All is sent before any of it is received."""
    ours, theirs = socket.socketpair()
    with theirs:
        transport = Transport(OwnedFd(ours.detach()))
        marks: list[int] = []
        for sent, parts in zip(messages, cuts, strict=True):
            send(theirs, sent, marks, parts)
        for request, payload, count in messages:
            with trio.fail_after(5):
                message = await transport.receive()
            assert message is not None
            assert (message.request, message.payload) == (request, payload)
            found = [os.fstat(fd.fileno()).st_size for fd in message.fds]
            assert found == marks[:count]
            assert not message.fds_lost
            del marks[:count]
            message.close()
        transport.close()


@pytest.mark.parametrize(
    "messages",
    [
        [FEATURES, KICK],
        [NO_KICK, KICK],
        [KICK, KICK],
        [(Request.GET_FEATURES, b"", 2), KICK],
        [(Request.SET_VRING_KICK, KICK[1], 0), KICK],
        [(Request.SET_MEM_TABLE, bytes(8), 8), FEATURES, (Request.REM_MEM_REG, bytes(40), 1)],
    ],
)
async def test_descriptors_stay_with_their_message(messages: list[Sent]) -> None:
    """Also those that should not be there, and where one that should is missing."""
    await exchange(messages, [()] * len(messages))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [Request.GET_FEATURES, Request.SET_VRING_KICK, Request.SET_MEM_TABLE, 99]
            ),
            st.binary(max_size=40),
            st.integers(0, 3),
            st.lists(st.integers(1, 30), max_size=2),
        ),
        max_size=6,
    )
)
def test_messages_in_any_parts(items: list[tuple[int, bytes, int, list[int]]]) -> None:
    messages = [(request, payload, count) for request, payload, count, _ in items]
    trio.run(partial(exchange, messages, [cuts for *_, cuts in items]))


VRING_FDS = {"SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"}
OTHER_FDS = {"SET_MEM_TABLE", "SET_BACKEND_REQ_FD", "ADD_MEM_REG", "REM_MEM_REG"}


@pytest.mark.parametrize("request_", Request)
def test_which_requests_carry_descriptors(request_: Request) -> None:
    """SET_VRING_KICK and the like say so in a bit of their payload."""
    assert carries_fds(request_, bytes(8)) is (request_.name in VRING_FDS | OTHER_FDS)
    assert carries_fds(request_, NO_FD.to_bytes(8, "little")) is (request_.name in OTHER_FDS)

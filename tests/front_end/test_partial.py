"""Messages that arrive in parts."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.vhost_user import HEADER, HEADER_SIZE, MAX_PAYLOAD_SIZE, VERSION, HeaderFlag
from tests.support.helpers import no_fds
from vhost_balloon.errors import StreamError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.front_end.partial import Partial, parse_header


def fed(partial: Partial, data: bytes, cuts: list[int]) -> bytes:
    """Add data while some is missing, in parts of at most these sizes; return the rest."""
    sizes = iter(cuts)
    while (missing := partial.missing()) > 0 and data:
        part = data[: min(missing, next(sizes, missing))]
        partial.add(part)
        data = data[len(part) :]
    return data


@given(
    request=st.integers(0, 60),
    need_reply=st.booleans(),
    payload=st.binary(max_size=300),
    after=st.binary(max_size=20),
    cuts=st.lists(st.integers(1, 40), max_size=30),
)
def test_a_message_is_the_same_in_any_parts(
    request: int, need_reply: bool, payload: bytes, after: bytes, cuts: list[int]
) -> None:
    flags = VERSION | (HeaderFlag.NEED_REPLY if need_reply else 0)
    partial = Partial(fds=no_fds(2))
    rest = fed(partial, HEADER.pack(request, flags, len(payload)) + payload + after, cuts)
    assert (rest, partial.missing()) == (after, 0)
    message = partial.message()
    assert (message.request, message.flags, message.payload) == (request, flags, payload)
    assert not message.oversized
    assert (len(message.fds), partial.fds) == (2, [])


def test_a_payload_that_is_too_long_is_skipped_and_not_kept() -> None:
    size = MAX_PAYLOAD_SIZE * 20
    partial = Partial()
    assert fed(partial, HEADER.pack(5, VERSION, size) + bytes(size) + b"x", [5, 9, 100]) == b"x"
    assert len(partial.data) <= HEADER_SIZE + MAX_PAYLOAD_SIZE
    message = partial.message()
    assert message.oversized
    assert message.request == 5


def test_a_message_that_was_kept_under_a_larger_limit_is_oversized_under_a_smaller_one() -> None:
    """Another process, with another journal, may have taken the first parts."""
    partial = Partial()
    rest = fed(partial, HEADER.pack(5, VERSION, 100) + bytes(60), [])
    partial.longest = 50
    assert (fed(partial, rest + bytes(40), []), partial.missing()) == (b"", 0)
    assert partial.request() == HEADER.pack(5, VERSION, 100)
    message = partial.message()
    assert (message.oversized, message.payload) == (True, b"")


@given(size=st.integers(0, 60), kept=st.integers(0, 71))
def test_which_bytes_complete_a_message(size: int, kept: int) -> None:
    data = HEADER.pack(5, VERSION, size) + bytes(size)
    partial = Partial()
    fed(partial, data[:kept], [])
    for end in range(kept + 1, min(kept + partial.missing(), len(data)) + 1):
        complete = end == len(data) and kept >= HEADER_SIZE
        assert partial.is_last(data[kept:end]) == complete


@pytest.mark.parametrize("flags", [0, 2, VERSION | 1 << 5, VERSION | 1 << 31])
def test_invalid_flags_are_refused_at_once(flags: int) -> None:
    partial = Partial()
    partial.add(HEADER.pack(1, flags, 8))
    with pytest.raises(StreamError):
        partial.missing()


@pytest.mark.parametrize("length", range(HEADER_SIZE))
def test_fewer_bytes_than_a_header_are_refused(length: int) -> None:
    with pytest.raises(StreamError):
        parse_header(bytes(length))


def test_closing_an_incomplete_message_closes_its_descriptors() -> None:
    read, write = os.pipe()
    partial = Partial(fds=[OwnedFd(read), OwnedFd(write)])
    held = partial.fds
    partial.close()
    partial.close()
    assert all(fd.closed for fd in held)

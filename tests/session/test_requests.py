"""Any request: gates, payload sizes, descriptors, replies and refusals."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protocol.vhost_user import VERSION, HeaderFlag, ProtocolFeature, Request
from protocol.vhost_user_payloads import Region
from tests.support.fakes.pure_front_end import (
    ACK,
    EVERY_FEATURE,
    NACK,
    NO_FD,
    STATE,
    U64,
    PureFrontEnd,
    R,
    address,
    config,
    region,
)
from tests.support.helpers import GIB, no_fds
from vhost_balloon.session import effects
from vhost_balloon.session.message import Message
from vhost_balloon.session.session import PROTOCOL_FEATURES

# Replies

VALID: list[tuple[Request, bytes, int, bytes | None]] = [
    (R.GET_FEATURES, b"", 0, U64(EVERY_FEATURE)),
    (R.SET_FEATURES, U64(EVERY_FEATURE), 0, None),
    (R.SET_OWNER, b"", 0, None),
    (R.RESET_OWNER, b"", 0, None),
    (R.SET_MEM_TABLE, bytes(8), 0, None),
    (R.SET_VRING_NUM, STATE(4, 128), 0, None),
    (R.SET_VRING_ADDR, address(4), 0, None),
    (R.SET_VRING_BASE, STATE(4, 65535), 0, None),
    (R.GET_VRING_BASE, STATE(4, 0), 0, STATE(4, 0)),
    (R.SET_VRING_CALL, U64(4), 1, None),
    (R.SET_VRING_CALL, U64(4 | NO_FD), 0, None),
    (R.SET_VRING_ERR, U64(4), 1, None),
    (R.SET_VRING_ERR, U64(4 | NO_FD), 0, None),
    (R.GET_PROTOCOL_FEATURES, b"", 0, U64(PROTOCOL_FEATURES)),
    (R.SET_PROTOCOL_FEATURES, U64(PROTOCOL_FEATURES), 0, None),
    (R.GET_QUEUE_NUM, b"", 0, U64(5)),
    (R.SET_VRING_ENABLE, STATE(4, 1), 0, None),
    (R.SET_BACKEND_REQ_FD, b"", 1, None),
    (R.GET_CONFIG, config(bytes(16)), 0, config(bytes(16))),
    (R.SET_CONFIG, config(bytes(16)), 0, None),
    (R.RESET_DEVICE, b"", 0, None),
    (R.GET_MAX_MEM_SLOTS, b"", 0, U64(509)),
    (R.ADD_MEM_REG, region(Region(GIB, GIB, GIB, GIB)), 1, None),
    (R.REM_MEM_REG, region(), 0, None),
    (R.SET_STATUS, U64(15), 0, None),
    (R.GET_STATUS, b"", 0, U64(0)),
]


@pytest.mark.parametrize(("request_", "payload", "fds", "reply"), VALID)
def test_requests_with_a_reply_get_it_and_others_get_an_ack_on_request(
    front_end: PureFrontEnd, request_: Request, payload: bytes, fds: int, reply: bytes | None
) -> None:
    assert front_end.send(request_, payload, fds) == reply
    assert front_end.refusals == []
    assert front_end.fds_left == 0
    again = PureFrontEnd()
    again.negotiate()
    again.send(R.ADD_MEM_REG, region(), fds=1)
    assert again.send(request_, payload, fds, need_reply=True) == (ACK if reply is None else reply)


GATES = [
    (ProtocolFeature.MQ, R.GET_QUEUE_NUM),
    (ProtocolFeature.BACKEND_REQ, R.SET_BACKEND_REQ_FD),
    (ProtocolFeature.CONFIG, R.GET_CONFIG),
    (ProtocolFeature.CONFIG, R.SET_CONFIG),
    (ProtocolFeature.RESET_DEVICE, R.RESET_DEVICE),
    (ProtocolFeature.CONFIGURE_MEM_SLOTS, R.GET_MAX_MEM_SLOTS),
    (ProtocolFeature.CONFIGURE_MEM_SLOTS, R.ADD_MEM_REG),
    (ProtocolFeature.CONFIGURE_MEM_SLOTS, R.REM_MEM_REG),
    (ProtocolFeature.STATUS, R.SET_STATUS),
    (ProtocolFeature.STATUS, R.GET_STATUS),
]


@pytest.mark.parametrize(
    ("request_", "payload", "fds"),
    [row[:3] for row in VALID if row[0] not in [request for _, request in GATES]],
)
def test_base_requests_need_no_protocol_feature(
    fresh: PureFrontEnd, request_: Request, payload: bytes, fds: int
) -> None:
    fresh.send(request_, payload, fds)
    assert fresh.refusals == []


@pytest.mark.parametrize(("request_", "payload", "fds"), [row[:3] for row in VALID])
def test_a_payload_too_long_or_too_short_is_refused(
    front_end: PureFrontEnd, request_: Request, payload: bytes, fds: int
) -> None:
    wrong = [payload + b"\0", payload[:-1]] if payload else [b"\0"]
    for data in wrong:
        front_end.send(request_, data, fds)
    assert len(front_end.refusals) == len(wrong)
    assert front_end.effects == []


ALWAYS_ANSWERED = {
    R.GET_FEATURES: U64(0),
    R.GET_PROTOCOL_FEATURES: U64(0),
    R.GET_VRING_BASE: STATE(0, 0),
    R.GET_VRING_BASE_SKIP_DRAIN: STATE(0, 0),
    R.GET_QUEUE_NUM: U64(0),
    R.GET_MAX_MEM_SLOTS: U64(0),
    R.GET_STATUS: U64(0),
    R.GET_CONFIG: b"",  # spec: no payload means an error
    R.GET_INFLIGHT_FD: bytes(20),
    R.GET_SHMEM_CONFIG: bytes(2056),
    R.SET_DEVICE_STATE_FD: U64(0x101),  # an error, and no descriptor
    R.CHECK_DEVICE_STATE: NACK,
    R.GET_SHARED_OBJECT: NACK,
    R.IOTLB_MSG: NACK,
    R.POSTCOPY_END: NACK,
}


@pytest.mark.parametrize("need_reply", [False, True])
@pytest.mark.parametrize("request_", [*Request, 0, 46, 0xFFFF_FFFF])
def test_a_refusal_is_answered_if_the_front_end_waits_for_an_answer(
    front_end: PureFrontEnd, request_: int, need_reply: bool
) -> None:
    nack = NACK if need_reply else None
    expected = ALWAYS_ANSWERED.get(Request(request_), nack) if request_ in [*Request] else nack
    assert front_end.send(request_, bytes(3), fds=9, need_reply=need_reply) == expected
    assert len(front_end.refusals) == 1
    assert front_end.fds_left == 9
    assert front_end.effects == []


def test_without_reply_ack_nothing_is_acknowledged(fresh: PureFrontEnd) -> None:
    fresh.negotiate(protocol_features=PROTOCOL_FEATURES & ~ProtocolFeature.REPLY_ACK)
    assert fresh.send(R.SET_OWNER, need_reply=True) is None
    assert fresh.send(R.SET_OWNER, b"x", need_reply=True) is None
    assert fresh.send(R.GET_STATUS, need_reply=True) == U64(0)


@pytest.mark.parametrize("request_", [R.SET_LOG_BASE, R.SET_INFLIGHT_FD, R.SET_DEVICE_STATE_FD])
def test_unsupported_requests_are_refused(front_end: PureFrontEnd, request_: Request) -> None:
    front_end.send(request_, bytes(16), fds=1, need_reply=True)
    assert front_end.refusals == ["not supported"]


@pytest.mark.parametrize(("feature", "request_"), GATES)
def test_a_request_whose_feature_was_not_negotiated_is_refused(
    fresh: PureFrontEnd, feature: ProtocolFeature, request_: Request
) -> None:
    fresh.negotiate(protocol_features=PROTOCOL_FEATURES & ~feature)
    payload, fds = next((payload, fds) for r, payload, fds, _ in VALID if r == request_)
    fresh.send(request_, payload, fds)
    assert fresh.refusals == [f"{feature.name} is not negotiated"]


@pytest.mark.parametrize(
    "message",
    [
        Message(R.SET_OWNER, VERSION | HeaderFlag.NEED_REPLY, oversized=True),
        Message(R.SET_OWNER, VERSION | HeaderFlag.NEED_REPLY, fds_lost=True),
        Message(R.SET_OWNER, VERSION | HeaderFlag.NEED_REPLY | HeaderFlag.REPLY),
    ],
)
def test_an_incomplete_message_or_a_reply_is_refused(
    front_end: PureFrontEnd, message: Message
) -> None:
    assert front_end.deliver(message) == NACK
    assert front_end.session.status == 0


@pytest.mark.parametrize(("request_", "payload", "fds"), [row[:3] for row in VALID])
def test_one_descriptor_too_many_or_too_few_is_refused(
    front_end: PureFrontEnd, request_: Request, payload: bytes, fds: int
) -> None:
    front_end.send(request_, payload, fds + 1 + (request_ == R.REM_MEM_REG))
    if fds:
        front_end.send(request_, payload, fds - 1)
    assert len(front_end.refusals) == (2 if fds else 1)
    assert front_end.effects == []


# Anything else

WORD = st.one_of(st.integers(0, 9), st.sampled_from([64, 0x100, 0x1000]), st.integers(0, 1 << 31))
PAYLOADS = st.one_of(
    st.sampled_from([payload for _, payload, _, _ in VALID]),
    st.lists(WORD, max_size=10).map(lambda words: struct.pack(f"<{len(words)}I", *words)),
    st.binary(max_size=64),
)
MESSAGES = st.one_of(
    st.sampled_from([row[:3] for row in VALID]),
    st.builds(
        lambda index, fds: (R.SET_VRING_KICK, U64(index), fds), st.integers(0, 5), st.just(1)
    ),
    st.builds(lambda index: (R.SET_VRING_NUM, STATE(index, 64), 0), st.integers(0, 5)),
    st.builds(lambda index: (R.SET_VRING_ADDR, address(index), 0), st.integers(0, 5)),
    st.tuples(st.integers(0, 50), PAYLOADS, st.integers(0, 3)),
    st.tuples(st.integers(0, 0xFFFF_FFFF), st.binary(max_size=400), st.integers(0, 9)),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(MESSAGES, st.integers(0, 15), st.booleans()), max_size=40),
    st.sampled_from([None, effects.StartRing, effects.AddRegion, effects.SetCall]),
)
@example([((R.ADD_MEM_REG, region(), 1), 1, False)] * 2, None)
def test_any_messages_leave_the_session_consistent_with_its_effects(
    messages: list[tuple[tuple[int, bytes, int], int, bool]], failing: type[effects.Effect] | None
) -> None:
    front_end = PureFrontEnd()
    front_end.negotiate()
    session = front_end.session
    for (request, payload, fds), flags, fails in messages:
        front_end.failing = failing if fails else None
        refused = len(front_end.refusals)
        reply = front_end.deliver(Message(request, flags, payload, no_fds(fds)))
        assert reply is None or len(reply) <= 4096
        if len(front_end.refusals) > refused:
            assert all(front_end.refusals)
        assert set(session.started) == front_end.started
        assert session.regions == front_end.regions
        assert front_end.balloon.memory_size == sum(r.size for r in session.regions)
        assert session.features == front_end.balloon.features
        assert not session.features & ~session.offered
        assert not session.protocol_features & ~PROTOCOL_FEATURES
        assert 0 <= session.status <= 0xFF
        for ring in session.rings:
            assert ring.size & (ring.size - 1) == 0
            assert 0 <= ring.base <= 0xFFFF
            assert not ring.started or (ring.size and ring.address is not None)

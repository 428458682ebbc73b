"""Requests that set rings up, start, stop and enable them."""

from __future__ import annotations

import struct

import pytest

from protocol.vhost_user import Request
from protocol.vhost_user_payloads import VringAddress
from tests.support.fakes.pure_front_end import (
    ACK,
    NACK,
    NO_FD,
    STATE,
    U64,
    PureFrontEnd,
    R,
    address,
    set_up,
    start_all,
)
from vhost_balloon.session import effects


@pytest.mark.parametrize("size", [0, 3, 65, 32769, 65536, 0x8000_0000])
def test_an_invalid_queue_size_is_refused(front_end: PureFrontEnd, size: int) -> None:
    assert front_end.send(R.SET_VRING_NUM, STATE(0, size), need_reply=True) == NACK


@pytest.mark.parametrize("size", [1, 64, 32768])
def test_a_queue_size_is_a_power_of_two_up_to_32768(front_end: PureFrontEnd, size: int) -> None:
    assert front_end.send(R.SET_VRING_NUM, STATE(0, size), need_reply=True) == ACK


@pytest.mark.parametrize(("part", "good", "bad"), [(0, 16, 8), (1, 4, 2), (2, 2, 1)])
def test_ring_addresses_must_be_aligned(
    front_end: PureFrontEnd, part: int, good: int, bad: int
) -> None:
    for shift, reply in ((good, ACK), (bad, NACK)):
        parts = [0x1000, 0x3000, 0x2000]  # descriptors, used, available: the order on the wire
        parts[part] += shift
        payload = struct.pack("<IIQQQQ", 0, 0, *parts, 0)
        assert front_end.send(R.SET_VRING_ADDR, payload, need_reply=True) == reply


def test_logging_and_a_base_of_more_than_16_bits_are_refused(front_end: PureFrontEnd) -> None:
    assert front_end.send(R.SET_VRING_ADDR, address(0, flags=1), need_reply=True) == NACK
    assert front_end.send(R.SET_VRING_BASE, STATE(0, 65536), need_reply=True) == NACK


@pytest.mark.parametrize("index", [5, 255, 0xFFFF_FFFF])
@pytest.mark.parametrize(
    "request_",
    [
        R.SET_VRING_NUM,
        R.SET_VRING_ADDR,
        R.SET_VRING_BASE,
        R.GET_VRING_BASE,
        R.SET_VRING_ENABLE,
        R.SET_VRING_KICK,
        R.SET_VRING_CALL,
        R.SET_VRING_ERR,
    ],
)
def test_there_are_five_rings(front_end: PureFrontEnd, request_: Request, index: int) -> None:
    by_u64 = request_ in (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR)
    payload = U64(index & 0xFF) if by_u64 else STATE(index, 1)
    payload = address(index) if request_ == R.SET_VRING_ADDR else payload
    front_end.send(request_, payload, fds=int(by_u64))
    assert front_end.refusals == [f"ring {index & 0xFF if by_u64 else index} does not exist"]


def test_a_kick_starts_a_ring_as_it_was_set_up(front_end: PureFrontEnd) -> None:
    set_up(front_end, 1, base=9)
    assert front_end.fds_left == 0
    start, changed, call = front_end.effects
    assert isinstance(start, effects.StartRing)
    expected = VringAddress(1, 0, descriptor=0x1000, used=0x3000, available=0x2000, log=0)
    assert (start.index, start.setup) == (1, effects.RingSetup(64, expected, 9))
    assert changed == effects.RingsChanged()
    assert isinstance(call, effects.SetCall)
    assert front_end.session.started == [1]
    assert not front_end.session.is_enabled(1)
    front_end.send(R.SET_VRING_ENABLE, STATE(1, 1))
    assert front_end.session.is_enabled(1)
    assert front_end.took(effects.RingsChanged) == 2


@pytest.mark.parametrize("missing", [R.SET_VRING_NUM, R.SET_VRING_ADDR])
def test_a_ring_without_size_or_address_does_not_start(
    front_end: PureFrontEnd, missing: Request
) -> None:
    for request_, payload in ((R.SET_VRING_NUM, STATE(0, 64)), (R.SET_VRING_ADDR, address(0))):
        if request_ != missing:
            front_end.send(request_, payload)
    assert front_end.send(R.SET_VRING_KICK, U64(0), fds=1, need_reply=True) == NACK
    assert front_end.session.started == []


def test_a_ring_that_needs_polling_does_not_start(front_end: PureFrontEnd) -> None:
    set_up(front_end, 0)
    front_end.send(R.GET_VRING_BASE, STATE(0, 0))
    for fds in (0, 1):
        assert front_end.send(R.SET_VRING_KICK, U64(NO_FD), fds, need_reply=True) == NACK
    assert front_end.session.suspended


@pytest.mark.parametrize(
    ("request_", "kind"), [(R.SET_VRING_CALL, effects.SetCall), (R.SET_VRING_ERR, effects.SetErr)]
)
def test_call_and_err_are_set_or_removed(
    front_end: PureFrontEnd, request_: Request, kind: type[effects.SetCall | effects.SetErr]
) -> None:
    front_end.send(request_, U64(3), fds=1)
    front_end.send(request_, U64(3 | NO_FD))
    given, taken = front_end.effects
    assert isinstance(given, kind)
    assert (given.index, given.fd is None, taken) == (3, False, kind(3, None))


def test_a_ring_outside_memory_does_not_start(front_end: PureFrontEnd) -> None:
    front_end.failing = effects.StartRing
    set_up(front_end, 0)
    assert front_end.session.suspended
    assert len(front_end.refusals) == 1
    front_end.failing = None
    set_up(front_end, 0)
    assert front_end.session.started == [0]


def test_a_started_ring_accepts_a_new_kick_but_no_new_layout(front_end: PureFrontEnd) -> None:
    set_up(front_end, 0, base=3)
    front_end.effects.clear()
    set_up(front_end, 0, base=3)  # the same again is harmless
    assert front_end.refusals == []
    assert isinstance(front_end.effects[0], effects.SetKick)
    front_end.send(R.SET_VRING_NUM, STATE(0, 128))
    front_end.send(R.SET_VRING_ADDR, address(0, at=0x8000))
    front_end.send(R.SET_VRING_BASE, STATE(0, 4))
    assert front_end.refusals == ["ring is started"] * 3


def test_a_stopped_ring_returns_its_base_and_continues_from_it(front_end: PureFrontEnd) -> None:
    set_up(front_end, 2, base=3)
    front_end.bases = {2: 41}
    for _ in range(2):  # a second request returns the same
        assert front_end.send(R.GET_VRING_BASE, STATE(2, 0)) == STATE(2, 41)
    assert front_end.effects[-2:] == [effects.StopRing(2), effects.RingsChanged()]
    assert front_end.took(effects.StopRing) == 1
    front_end.send(R.SET_VRING_KICK, U64(2), fds=1)
    restarted = [e.setup.base for e in front_end.effects if isinstance(e, effects.StartRing)]
    assert restarted == [3, 41]


def test_without_protocol_features_a_ring_starts_enabled(fresh: PureFrontEnd) -> None:
    fresh.negotiate(features=0)
    set_up(fresh, 0)
    assert fresh.session.is_enabled(0)
    fresh.send(R.RESET_OWNER)
    assert fresh.session.is_enabled(0)


def test_reset_owner_disables_rings_without_stopping_them(front_end: PureFrontEnd) -> None:
    start_all(front_end, {0: 0, 1: 0})
    front_end.effects.clear()
    front_end.send(R.RESET_OWNER)
    assert front_end.effects == [effects.RingsChanged()]
    assert front_end.session.started == [0, 1]
    assert not any(map(front_end.session.is_enabled, range(5)))


@pytest.mark.parametrize("value", [2, 0xFFFF_FFFF])
def test_enable_is_0_or_1(front_end: PureFrontEnd, value: int) -> None:
    assert front_end.send(R.SET_VRING_ENABLE, STATE(0, value), need_reply=True) == NACK


def test_the_driver_is_ready_once_inflate_and_deflate_are_started(front_end: PureFrontEnd) -> None:
    set_up(front_end, 0)
    assert not front_end.session.driver_ready
    set_up(front_end, 1)
    assert front_end.session.driver_ready

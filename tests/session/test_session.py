"""Starts, stops and reboots of a driver, in the messages that QEMU sends."""

from __future__ import annotations

import struct

import pytest

from protocol.vhost_user import MAX_MEMORY_REGIONS
from tests.support.fakes.pure_front_end import (
    ACK,
    EVERY_FEATURE,
    STATE,
    U64,
    PureFrontEnd,
    R,
    actual,
    config,
    region,
    set_up,
    start_all,
    stop_all,
)
from tests.support.helpers import GIB, PAGE
from vhost_balloon.session import effects
from vhost_balloon.session.session import PROTOCOL_FEATURES, TRANSPORT_FEATURES


def inflated(front_end: PureFrontEnd, rings: int = 4) -> None:
    start_all(front_end, dict.fromkeys(range(rings), 0))
    front_end.send(R.SET_CONFIG, actual(5))
    front_end.effects.clear()


def test_a_first_start_is_not_a_new_driver(front_end: PureFrontEnd) -> None:
    start_all(front_end, {0: 0, 1: 0, 2: 0, 3: 0})
    assert front_end.took(effects.NewDriver) == 0


def test_stop_and_cont_keep_the_balloon(front_end: PureFrontEnd) -> None:
    inflated(front_end)
    bases = {0: 10, 1: 0, 2: 3, 3: 7}
    stop_all(front_end, bases)
    start_all(front_end, bases)
    assert front_end.took(effects.NewDriver) == 0
    assert front_end.balloon.balloon_size == 5 * PAGE


@pytest.mark.parametrize(
    "bases", [{0: 10, 1: 0, 2: 3, 3: 7}, {0: 0, 1: 0, 2: 0, 3: 1}, {0: 5, 1: 5, 2: 5, 3: 5}]
)
def test_after_a_reboot_the_balloon_is_empty_and_the_target_stays(
    front_end: PureFrontEnd, bases: dict[int, int]
) -> None:
    front_end.balloon.carry_out(GIB // 2)
    inflated(front_end)
    stop_all(front_end, bases)
    assert front_end.balloon.balloon_size == 5 * PAGE
    start_all(front_end, dict.fromkeys(bases, 0))
    assert front_end.took(effects.NewDriver) == front_end.took(effects.ActualChanged) == 1
    assert (front_end.balloon.balloon_size, front_end.balloon.target) == (0, GIB // 2)
    stop_all(front_end, dict.fromkeys(bases, 0))
    start_all(front_end, dict.fromkeys(bases, 0))
    assert front_end.took(effects.NewDriver) == 0  # nothing was used in between


def test_after_a_reset_the_next_start_is_not_a_new_driver_again(front_end: PureFrontEnd) -> None:
    inflated(front_end)
    stop_all(front_end, {0: 10, 1: 0, 2: 3, 3: 7})
    front_end.send(R.RESET_DEVICE)
    assert front_end.took(effects.NewDriver) == front_end.took(effects.ActualChanged) == 1
    start_all(front_end, dict.fromkeys(range(4), 0))
    assert front_end.took(effects.NewDriver) == 0


def test_an_index_that_wrapped_to_0_is_not_a_new_driver(front_end: PureFrontEnd) -> None:
    inflated(front_end)
    bases = {0: 0, 1: 2, 2: 3, 3: 7}
    stop_all(front_end, bases)
    start_all(front_end, bases)
    assert front_end.balloon.balloon_size == 5 * PAGE


@pytest.mark.parametrize("protocol_features", [True, False])
@pytest.mark.parametrize("new_driver", [True, False])
def test_a_front_end_may_start_and_enable_its_rings_one_by_one(
    fresh: PureFrontEnd, new_driver: bool, protocol_features: bool
) -> None:
    """Ring 0 alone proves nothing if it was never used: the next ring decides."""
    fresh.negotiate(features=EVERY_FEATURE if protocol_features else 0x3F)
    inflated(fresh)
    bases = {0: 0, 1: 2, 2: 3, 3: 0}
    stop_all(fresh, bases)
    for index, base in bases.items():
        set_up(fresh, index, 0 if new_driver else base)
        fresh.send(R.SET_VRING_ENABLE, STATE(index, 1))
    assert fresh.took(effects.NewDriver) == (1 if new_driver else 0)
    assert fresh.balloon.balloon_size == (0 if new_driver else 5 * PAGE)


def test_qemus_messages_from_its_start_to_its_end() -> None:
    """Order and acks as observed with QEMU 11.1, with reporting at ring 3."""
    front_end = PureFrontEnd()
    bits = 0x27 | TRANSPORT_FEATURES
    assert front_end.send(R.GET_FEATURES) == U64(EVERY_FEATURE)
    assert front_end.send(R.GET_PROTOCOL_FEATURES) == U64(PROTOCOL_FEATURES)
    front_end.send(R.SET_PROTOCOL_FEATURES, U64(PROTOCOL_FEATURES))
    assert front_end.send(R.GET_QUEUE_NUM) == U64(5)
    assert front_end.send(R.GET_MAX_MEM_SLOTS) == U64(MAX_MEMORY_REGIONS)
    assert front_end.send(R.SET_BACKEND_REQ_FD, fds=1, need_reply=True) == ACK
    front_end.send(R.SET_OWNER)
    front_end.send(R.GET_FEATURES)
    for index in range(5):
        front_end.send(R.SET_VRING_CALL, U64(index), fds=1)
        front_end.send(R.SET_VRING_ERR, U64(index), fds=1)
    poison = config(struct.pack("<IIII", 0, 0, 0, 0xAAAAAAAA))
    assert front_end.send(R.SET_CONFIG, poison, need_reply=True) == ACK
    for _ in range(2):  # a boot and a reboot
        front_end.send(R.SET_FEATURES, U64(bits))
        assert front_end.send(R.GET_STATUS) in (U64(0), U64(8))
        front_end.send(R.SET_STATUS, U64(8))
        if not front_end.session.regions:
            assert front_end.send(R.ADD_MEM_REG, region(), fds=1, need_reply=True) == ACK
        start_all(front_end, {0: 0, 1: 0, 2: 0, 3: 0})
        for index in range(5):
            front_end.send(R.SET_VRING_CALL, U64(index), fds=1)
        assert front_end.session.driver_ready
        stop_all(front_end, {0: 1, 1: 0, 2: 2, 3: 3})
    assert front_end.took(effects.NewDriver) == 1
    assert front_end.balloon.read_config(12, 4) == b"\xaa" * 4
    assert front_end.refusals == []

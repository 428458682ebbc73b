"""Requests about features, the config space and the device as a whole."""

from __future__ import annotations

import struct

import pytest

from protocol.vhost_user import Request
from protocol.virtio_balloon import BalloonFeature
from tests.support.fakes.pure_front_end import (
    ACK,
    EVERY_FEATURE,
    MEMORY,
    NACK,
    STATE,
    U64,
    PureFrontEnd,
    R,
    actual,
    config,
    region,
    start_all,
)
from tests.support.helpers import GIB
from vhost_balloon.session import effects
from vhost_balloon.session.session import TRANSPORT_FEATURES

# Features


def test_what_is_offered(fresh: PureFrontEnd) -> None:
    bits = 0x3F | 1 << 28 | 1 << 30 | 1 << 32  # no EVENT_IDX (29), no LOG_ALL (26)
    assert fresh.send(R.GET_FEATURES) == U64(bits)
    offered = 0b1_1010_0010_0010_1001  # MQ REPLY_ACK BACKEND_REQ CONFIG RESET MEM_SLOTS STATUS
    assert fresh.send(R.GET_PROTOCOL_FEATURES) == U64(offered)
    assert not offered & (1 << 14 | 1 << 17 | 1 << 21)


def test_a_disabled_feature_is_not_offered() -> None:
    front_end = PureFrontEnd(offered=int(BalloonFeature.STATS_VQ))
    assert front_end.send(R.GET_FEATURES) == U64(2 | TRANSPORT_FEATURES)


@pytest.mark.parametrize("bit", [6, 26, 29, 33, 34, 63])
def test_features_that_were_not_offered_are_refused(front_end: PureFrontEnd, bit: int) -> None:
    assert front_end.send(R.SET_FEATURES, U64(1 << bit), need_reply=True) == NACK
    assert front_end.session.features == front_end.balloon.features == EVERY_FEATURE


@pytest.mark.parametrize("bit", [1, 12, 14, 17, 19, 21, 63])
def test_protocol_features_that_were_not_offered_are_refused(fresh: PureFrontEnd, bit: int) -> None:
    fresh.send(R.SET_PROTOCOL_FEATURES, U64(1 << bit))
    assert len(fresh.refusals) == 1
    assert fresh.session.protocol_features == 0


def test_the_balloon_learns_the_negotiated_features(fresh: PureFrontEnd) -> None:
    fresh.send(R.SET_FEATURES, U64(0x11))
    assert fresh.session.features == fresh.balloon.features == 0x11
    assert fresh.effects == [effects.RingsChanged()]


# Config space and status


def test_only_a_write_that_changes_actual_is_reported(front_end: PureFrontEnd) -> None:
    for _ in range(2):
        assert front_end.send(R.SET_CONFIG, actual(5), need_reply=True) == ACK
    assert front_end.took(effects.ActualChanged) == 1
    reply = front_end.send(R.GET_CONFIG, config(bytes(16)))
    assert reply == config(struct.pack("<IIII", 0, 5, 0, 0))


@pytest.mark.parametrize("payload", [config(b"x", offset=16), config(bytes(17)), config(b"")])
def test_config_accesses_out_of_range_are_refused(front_end: PureFrontEnd, payload: bytes) -> None:
    assert front_end.send(R.GET_CONFIG, payload) == b""
    assert front_end.send(R.SET_CONFIG, payload, need_reply=True) == NACK


def test_config_flags_other_than_migration_are_refused(front_end: PureFrontEnd) -> None:
    assert front_end.send(R.SET_CONFIG, config(bytes(16), flags=2), need_reply=True) == NACK
    migrated = config(struct.pack("<IIII", 9, 8, 7, 6), flags=1)
    assert front_end.send(R.SET_CONFIG, migrated, need_reply=True) == ACK
    reply = config(struct.pack("<IIII", 9, 8, 7, 6))
    assert front_end.send(R.GET_CONFIG, config(bytes(16))) == reply


@pytest.mark.parametrize(("offset", "unread"), [(0, False), (3, False), (4, True), (12, True)])
def test_only_an_access_to_num_pages_counts_as_reading_it(
    front_end: PureFrontEnd, offset: int, unread: bool
) -> None:
    front_end.session.config_unread = True
    front_end.send(R.GET_CONFIG, config(b"\0", offset=offset))
    assert front_end.session.config_unread is unread


@pytest.mark.parametrize("reset", [(R.RESET_DEVICE, b""), (R.SET_STATUS, U64(0))])
def test_a_reset_stops_everything_and_forgets_the_driver(
    front_end: PureFrontEnd, reset: tuple[Request, bytes]
) -> None:
    front_end.send(R.SET_STATUS, U64(15))
    assert front_end.send(R.GET_STATUS) == U64(15)
    start_all(front_end, {0: 0, 1: 0, 2: 0})
    front_end.send(R.SET_CONFIG, config(struct.pack("<IIII", 0, 5, 0, 0xAA)))
    front_end.balloon.carry_out(GIB // 2)
    front_end.effects.clear()
    front_end.bases = {0: 7, 1: 8, 2: 9}
    assert front_end.send(*reset, need_reply=True) == ACK
    assert front_end.took(effects.StopRing) == 3
    assert front_end.took(effects.NewDriver) == front_end.took(effects.ActualChanged) == 1
    assert front_end.session.suspended
    assert front_end.send(R.GET_STATUS) == U64(0)
    assert front_end.balloon.read_config(12, 4) == bytes(4)
    assert front_end.balloon.balloon_size == 0
    assert front_end.balloon.target == GIB // 2
    assert front_end.session.regions == [MEMORY]
    assert not any(map(front_end.session.is_enabled, range(5)))
    assert front_end.send(R.GET_VRING_BASE, STATE(0, 0)) == STATE(0, 0)
    start_all(front_end, {0: 0, 1: 0})
    assert front_end.took(effects.NewDriver) == 0  # reported already


def test_a_status_has_eight_bits(front_end: PureFrontEnd) -> None:
    assert front_end.send(R.SET_STATUS, U64(0xFF), need_reply=True) == ACK
    assert front_end.send(R.SET_STATUS, U64(0x100), need_reply=True) == NACK
    assert front_end.send(R.GET_STATUS) == U64(0xFF)


def test_an_owner_begins_anew_what_had_a_device(front_end: PureFrontEnd) -> None:
    session, balloon = front_end.session, front_end.balloon
    session.first_order = GIB // 4
    front_end.send(R.SET_STATUS, U64(15))
    start_all(front_end, {0: 0, 1: 0, 2: 0})
    front_end.send(R.SET_CONFIG, config(struct.pack("<IIII", 0, 5, 0, 0xAA)))
    balloon.carry_out(GIB // 2)
    session.config_unread = True
    front_end.bases = {0: 7, 1: 8, 2: 9}
    protocol_features = session.protocol_features
    assert front_end.send(R.SET_OWNER, need_reply=True) == ACK
    assert (session.regions, front_end.regions, front_end.started) == ([], [], set())
    assert front_end.took(effects.SetCall) >= 5
    assert (session.features, session.status, session.suspended) == (0, 0, True)
    assert session.protocol_features == protocol_features, "they came before"
    assert not session.config_unread
    assert not session.has_driver
    assert balloon.read_config(0, 16) == bytes(16)
    assert (balloon.order, balloon.memory_size) == (GIB // 4, 0)
    front_end.send(R.SET_FEATURES, U64(EVERY_FEATURE))
    front_end.send(R.ADD_MEM_REG, region(), fds=1)
    start_all(front_end, {0: 0, 1: 0, 2: 0})
    assert front_end.took(effects.NewDriver) == 1, "not once more at the start"


def test_an_owner_of_nothing_keeps_an_order(fresh: PureFrontEnd) -> None:
    fresh.balloon.order = GIB // 2
    fresh.send(R.SET_OWNER)
    fresh.send(R.SET_OWNER)
    assert fresh.balloon.order == GIB // 2
    assert fresh.effects == []


def test_set_owner_is_accepted(fresh: PureFrontEnd) -> None:
    assert fresh.send(R.SET_OWNER) is None
    assert not fresh.session.config_unread

"""Requests that change the memory table."""

from __future__ import annotations

import dataclasses

import pytest

from protocol.vhost_user import MAX_MEMORY_REGIONS
from protocol.vhost_user_payloads import Region
from tests.support.fakes.pure_front_end import (
    ACK,
    MEMORY,
    NACK,
    STATE,
    PureFrontEnd,
    R,
    actual,
    config,
    region,
)
from tests.support.helpers import GIB, PAGE
from vhost_balloon.session import effects


def test_regions_are_added_and_removed(front_end: PureFrontEnd) -> None:
    above = Region(4 * GIB, GIB, 0x7F10_0000_0000, GIB)
    front_end.send(R.ADD_MEM_REG, region(above), fds=1)
    assert front_end.session.regions == front_end.regions == [MEMORY, above]
    assert front_end.balloon.memory_size == 2 * GIB
    same = Region(MEMORY.guest_address, MEMORY.size, MEMORY.user_address, 12345)
    assert front_end.send(R.REM_MEM_REG, region(same), fds=1, need_reply=True) == ACK
    assert front_end.fds_left == 1  # accepted but unused: the receiver closes it
    assert front_end.session.regions == front_end.regions == [above]
    assert front_end.balloon.memory_size == GIB


@pytest.mark.parametrize("field", ["guest_address", "size", "user_address"])
def test_an_unknown_region_cannot_be_removed(front_end: PureFrontEnd, field: str) -> None:
    other = dataclasses.replace(MEMORY, **{field: getattr(MEMORY, field) + PAGE})
    assert front_end.send(R.REM_MEM_REG, region(other), need_reply=True) == NACK
    assert front_end.session.regions == [MEMORY]


def test_a_table_replaces_all_regions(front_end: PureFrontEnd) -> None:
    table = [Region(0, GIB, GIB, 0), Region(4 * GIB, 2 * GIB, 3 * GIB, GIB)]
    payload = STATE(2, 0) + b"".join(region(r)[8:] for r in table)
    assert front_end.send(R.SET_MEM_TABLE, payload, fds=2, need_reply=True) == ACK
    assert front_end.fds_left == 0
    assert front_end.session.regions == front_end.regions == table
    assert front_end.balloon.memory_size == 3 * GIB


@pytest.mark.parametrize("failing", [effects.AddRegion, effects.ReplaceRegions])
def test_memory_that_cannot_be_mapped_changes_nothing(
    front_end: PureFrontEnd, failing: type[effects.Effect]
) -> None:
    front_end.failing = failing
    payload = region(Region(GIB, GIB, GIB, 0))
    if failing is effects.AddRegion:
        assert front_end.send(R.ADD_MEM_REG, payload, fds=1, need_reply=True) == NACK
    else:
        table = STATE(1, 0) + payload[8:]
        assert front_end.send(R.SET_MEM_TABLE, table, fds=1, need_reply=True) == NACK
    assert front_end.session.regions == [MEMORY]
    assert front_end.balloon.memory_size == GIB
    assert front_end.fds_left == 1


def test_as_many_slots_as_announced(fresh: PureFrontEnd) -> None:
    fresh.negotiate()
    for slot in range(MAX_MEMORY_REGIONS):
        fresh.send(R.ADD_MEM_REG, region(Region(slot * GIB, GIB, slot * GIB, 0)), fds=1)
    assert fresh.refusals == []
    assert MAX_MEMORY_REGIONS >= 256
    fresh.send(R.ADD_MEM_REG, region(Region(GIB << 20, GIB, GIB << 20, 0)), fds=1)
    assert len(fresh.refusals) == 1


def test_hot_plug_moves_actual_and_leaves_num_pages(front_end: PureFrontEnd) -> None:
    front_end.balloon.carry_out(GIB - 8 * PAGE)
    front_end.send(R.SET_CONFIG, actual(5))
    front_end.effects.clear()
    front_end.send(R.ADD_MEM_REG, region(Region(4 * GIB, GIB, 4 * GIB, 0)), fds=1)
    assert front_end.took(effects.ActualChanged) == 1
    assert front_end.balloon.actual == 2 * GIB - 5 * PAGE
    assert front_end.send(R.GET_CONFIG, config(bytes(4))) == config(STATE(8, 0)[:4])

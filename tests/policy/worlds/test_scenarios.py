"""The worlds: drawn from scenario and seed alone, and what the scenarios promise."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Sequence
from itertools import pairwise
from random import Random

import pytest

from tests.policy.rule import HostView, Orders, VmView
from tests.policy.run import Run
from tests.policy.worlds import demand
from tests.policy.worlds.demand import LENGTH
from tests.policy.worlds.guest import Guest
from tests.policy.worlds.scenarios import SCENARIOS, world

GIB = 1024.0


class Squeezer:
    """Orders half of its size of each VM, and asks all."""

    name = "squeezer"
    period = 7

    def tick(self, now: int, host: HostView, vms: Sequence[VmView]) -> Orders:
        names: Collection[str] = [vm.name for vm in vms]
        return {vm.name: vm.size / (2 + now % 2) for vm in vms}, names


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_world_is_the_same_each_time(name: str) -> None:
    assert pickle.dumps(world(name, 3)) == pickle.dumps(world(name, 3))
    assert pickle.dumps(world(name, 3)) != pickle.dumps(world(name, 4))


def test_a_rule_does_not_change_the_world() -> None:
    drawn = world("silent", 0)
    before = pickle.dumps((drawn.host, drawn.guests))
    Run(drawn, Squeezer()).go()
    assert pickle.dumps((drawn.host, drawn.guests)) == before


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_world_fits_its_host_at_the_start(name: str) -> None:
    drawn = world(name, 1)
    total = drawn.host.total
    resident = sum(Guest(spec).resident for spec in drawn.guests if spec.boots == 0)
    free = 0.985 * total - drawn.host.load[0] - resident
    if any(spec.cache > 1 for spec in drawn.guests):
        assert free >= 0.28 * total - 1
    if any(spec.cache < spec.cache_limit for spec in drawn.guests if spec.boots == 0):
        assert free <= 0.28 * total + 1
    for spec in drawn.guests:
        assert len(spec.demand) == LENGTH
        assert spec.cache + spec.demand[spec.boots] <= spec.size


def test_the_odd_guests_are_there() -> None:
    silent = world("silent", 0).guests
    assert sum(200 <= spec.silent <= 800 for spec in silent) == 5
    assert sum(spec.silent == 0 for spec in silent) == 3
    assert sum(spec.pinned for spec in silent) == 2
    assert sum(not spec.reports for spec in silent) == 2
    assert sum(spec.least > 0 for spec in silent) == 3
    liars = world("liars", 0).guests
    assert sorted(spec.claims for spec in liars if spec.claims is not None) == [0] * 5 + [4096] * 5
    assert [spec.weight for spec in world("cache", 0).guests].count(300) == 7
    assert sum(spec.boots > 0 for spec in world("bootstorm", 0).guests) == 20


def test_the_future_is_what_comes() -> None:
    drawn = world("bootstorm", 2)
    late = drawn.guests[-1]
    assert drawn.future(late.name, late.boots - 1) == 0
    assert drawn.future(late.name, late.boots + 30) == late.demand[late.boots + 30]
    assert drawn.future(late.name, LENGTH + 5) == late.demand[-1]
    reader = world("scanner", 0).guests[0]
    assert world("scanner", 0).future(reader.name, 7) == reader.demand[7] + reader.hot > GIB


def test_ramps_are_straight_and_stay() -> None:
    trace = demand.ramps(10, [(2, 10), (4, 30), (6, 30), (6.5, 0)])
    assert trace[:8] == pytest.approx([10, 10, 10, 20, 30, 30, 30, 0])
    assert trace[-1] == 0
    assert len(trace) == LENGTH


def test_a_leak_starts_anew() -> None:
    trace = demand.leak(Random(1), 1 * GIB, 2 * GIB)
    assert min(trace) == GIB
    assert max(trace) < 2 * GIB
    assert any(after < before for before, after in pairwise(trace))

"""The rule, case by case: each reason, and what happened elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.policy.figures import GIB, MIB, PLENTY, RESERVE, SHORT, WELL, after, one, vm
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.policy.constants import HOLD, TICK
from vhost_balloon.policy.decide import HostState, decide, judge
from vhost_balloon.policy.inputs import (
    HostFigures,
    Sample,
    VmSettings,
    default_floor,
    default_reserve,
)
from vhost_balloon.policy.memory import Memory, from_document, to_document


@pytest.mark.parametrize(
    ("available", "some", "k", "short", "plenty"),
    [
        (8 * GIB, 0.0, 1.0, False, True),
        (3 * GIB, 0.0, 1.0, False, False),
        (GIB, 0.0, 0.5, True, False),
        (-GIB, 0.0, 0.0, True, False),
        (3 * GIB, 0.25, 0.75, True, False),
        (3 * GIB, 0.05, 1.0, False, False),
        (8 * GIB, 0.9, 1.0, False, True),
    ],
)
def test_one_number_says_how_the_host_is(
    available: int, some: float, k: float, short: bool, plenty: bool
) -> None:
    host = judge(HostFigures(available, 64 * GIB, some), RESERVE)
    assert (host.k, host.short, host.plenty) == (k, short, plenty)


@pytest.mark.parametrize(
    ("size", "floor"),
    [(128, 72), (512, 168), (2048, 360), (4096, 488), (8192, 744), (16384, 1000), (32768, 1512)],
)
def test_the_default_floor_is_that_of_the_linux_driver(size: int, floor: int) -> None:
    assert default_floor(size * MIB) == floor * MIB


@pytest.mark.parametrize(("total", "gib"), [(16, 2.28), (64, 6.12), (256, 21.48)])
def test_the_default_reserve_grows_slower_than_the_host(total: int, gib: float) -> None:
    assert default_reserve(total * GIB) == pytest.approx(gib * GIB, rel=0.001)


def test_nothing_moves_while_the_host_is_well() -> None:
    for host in (WELL, PLENTY):
        decision, _ = one(vm(available=3 * GIB), host)
        assert (decision.reason, decision.target) == (Reason.NOT_NEEDED, None)


def test_what_may_be_taken_is_counted_from_resident_memory() -> None:
    decision, _ = one(vm(available=3 * GIB, resident=2 * GIB), SHORT)
    keep = GIB + int(0.5 * 0.2 * 4 * GIB)
    assert decision.spare == pytest.approx(2 * GIB - keep, abs=MIB)
    assert decision.target == 2 * GIB - decision.spare


def test_a_vm_is_never_taken_below_its_demand_or_its_floor() -> None:
    gone = judge(HostFigures(0, 64 * GIB), RESERVE)
    decision, _ = one(vm(available=3 * GIB, resident=int(1.2 * GIB)), gone)
    assert decision.target == GIB
    settings = VmSettings(floor=int(1.1 * GIB))
    decision, _ = one(vm(available=3 * GIB, resident=int(1.2 * GIB), settings=settings), gone)
    assert decision.target == settings.floor


def test_less_than_a_step_is_not_asked_for() -> None:
    decision, _ = one(vm(available=GIB, resident=int(3.4 * GIB) + 8 * MIB), SHORT)
    assert decision.reason is Reason.TOO_SMALL
    assert 0 < decision.spare < 16 * MIB


def test_outside_shortage_relief_is_the_whole_ceiling_at_once() -> None:
    squeezed = vm(actual=2 * GIB, available=50 * MIB)
    assert one(squeezed)[0].target == 4 * GIB
    limited = replace(squeezed, settings=VmSettings(ceiling=3 * GIB))
    decision, _ = one(limited)
    assert (decision.reason, decision.target) == (Reason.RELIEF, 3 * GIB)


def test_in_shortage_relief_is_slack_once_for_each_sample() -> None:
    squeezed = vm(actual=2 * GIB, available=10 * MIB, taken=1)
    decision, memory = one(squeezed, SHORT, now=1)
    assert decision.reason is Reason.RELIEF
    assert decision.target == 2 * GIB + int(0.2 * 4 * GIB)
    grown = replace(squeezed, target=decision.target, actual=decision.target)
    again, memory = one(grown, SHORT, now=3, memory={"vm": memory})
    assert (again.reason, again.target) == (Reason.DISTRESS, None)
    sample = Sample(4, decision.target, 10 * MIB, 0)
    third, _ = one(replace(grown, sample=sample), SHORT, now=5, memory={"vm": memory})
    assert third.reason is Reason.RELIEF


def test_a_guest_that_takes_memory_back_gets_it() -> None:
    before = vm(actual=2 * GIB, available=GIB)
    decision, _ = one(replace(before, actual=2 * GIB + 16 * MIB), memory=after(before))
    assert (decision.reason, decision.target) == (Reason.RELIEF, 4 * GIB)


def test_plugged_memory_and_others_orders_are_not_taken_for_a_guest_in_need() -> None:
    before = vm(actual=2 * GIB, available=GIB)
    plugged = replace(before, size=5 * GIB, actual=3 * GIB, target=3 * GIB)
    ordered = replace(before, actual=3 * GIB, target=3 * GIB)
    for figures in (plugged, ordered):
        assert one(figures, memory=after(before))[0].target is None


def test_major_faults_show_that_useful_cache_was_taken() -> None:
    before = vm(actual=2 * GIB, available=GIB, faults=1000)
    for faults, reason in (
        (1500, Reason.NOT_NEEDED),
        (2000, Reason.RELIEF),
        (3, Reason.NOT_NEEDED),
    ):
        sample = Sample(10, 2 * GIB, GIB, faults)
        decision, _ = one(replace(before, sample=sample), now=10, memory=after(before))
        assert decision.reason is reason, faults


def test_a_squeezed_guest_that_falls_silent_gets_its_peak_and_slack() -> None:
    squeezed = vm(actual=int(1.2 * GIB), available=GIB // 2)
    peak, slack = int(1.2 * GIB) - GIB // 2, int(0.2 * 4 * GIB)
    memory = after(squeezed)
    orders = []
    for tick in range(1, 12):
        decision, memory["vm"] = one(squeezed, now=tick * TICK, memory=memory)
        orders.append((decision.reason, decision.target))
    assert {reason for reason, _ in orders[:3]} == {Reason.NOTHING_TO_SPARE}
    assert {reason for reason, _ in orders[3:]} == {Reason.SILENT}
    given = [(target or 0) - peak for _, target in orders[3:]]
    assert given == [int(slack * n / 4) for n in (4, 5, 6, 7, 8, 8, 8, 8)]
    nothing_known, _ = one(replace(squeezed, sample=None))
    assert (nothing_known.reason, nothing_known.target) == (Reason.SILENT, 4 * GIB)


def test_after_a_restart_a_guest_is_silent_only_once_it_was_asked() -> None:
    """Nobody asked for statistics while the hub was down: a short host would give all back."""
    squeezed = vm(actual=int(1.2 * GIB), available=GIB // 2)
    memory: Memory = from_document(to_document(after(squeezed)))
    reasons = []
    for tick in range(5):
        decision, of = one(squeezed, SHORT, now=1000 + tick * TICK, memory=memory)
        memory = {"vm": of}
        reasons.append(decision.reason)
    assert reasons == [Reason.STALE] * 4 + [Reason.SILENT]


def test_a_target_that_is_not_reached_is_withdrawn_and_the_vm_held() -> None:
    figures = vm(actual=3 * GIB, target=2 * GIB, available=2 * GIB)
    memory: Memory = {}
    reasons = []
    for tick in range(7):
        now = TICK * tick
        sample = Sample(now, 3 * GIB, 2 * GIB, 0)
        decision, of = one(replace(figures, sample=sample), SHORT, now=now, memory=memory)
        memory = {"vm": of}
        reasons.append(decision.reason)
    assert reasons == [Reason.MOVING] * 6 + [Reason.STUCK]
    assert decision.target == 3 * GIB
    stays = replace(figures, target=3 * GIB)
    for now, reason in ((20.0, Reason.HELD), (13 + HOLD, Reason.RECLAIM)):
        sample = Sample(now, 3 * GIB, 2 * GIB, 0)
        decision, _ = one(replace(stays, sample=sample), SHORT, now=now, memory=memory)
        assert decision.reason is reason


@pytest.mark.parametrize(
    ("target", "ceiling", "obstacle", "withdrawn"),
    [
        (2 * GIB, GIB, None, 3 * GIB),  # lowered by the policy, and above the ceiling even so
        (GIB, 2 * GIB, None, 2 * GIB),
        (GIB, 4 * GIB, Reason.PINNED, 3 * GIB),
        (GIB, 4 * GIB, Reason.MANUAL, None),
    ],
)
def test_what_is_withdrawn(
    target: int, ceiling: int, obstacle: Reason | None, withdrawn: int | None
) -> None:
    settings = VmSettings(ceiling=ceiling)
    memory: Memory = {}
    for tick in range(7):
        now = TICK * tick
        figures = vm(actual=3 * GIB, target=target, taken=now, settings=settings, obstacle=obstacle)
        decision, of = one(figures, now=now, memory=memory)
        memory = {"vm": of}
    assert decision.target == withdrawn
    assert decision.reason is (Reason.MANUAL if withdrawn is None else Reason.STUCK)


def test_a_guest_that_comes_closer_is_not_stuck() -> None:
    memory: Memory = {}
    for tick in range(20):
        now = TICK * tick
        actual = 4 * GIB - 50 * MIB * tick
        figures = vm(actual=actual, target=2 * GIB, available=2 * GIB, taken=now)
        decision, of = one(figures, SHORT, now=now, memory=memory)
        memory = {"vm": of}
        assert decision.reason is Reason.MOVING


@pytest.mark.parametrize("ceiling", [2 * GIB, 2 * GIB - 100])
def test_a_ceiling_that_a_guest_does_not_reach_is_left_as_it_is(ceiling: int) -> None:
    """An initial target of the configuration is the ceiling: not an order of the policy. Daemons
    round it up to pages."""
    figures = vm(actual=3 * GIB, target=2 * GIB, settings=VmSettings(ceiling=ceiling))
    memory: Memory = {}
    for tick in range(20):
        decision, of = one(figures, now=TICK * tick, memory=memory)
        memory = {"vm": of}
        assert decision.target is None


@pytest.mark.parametrize(
    "obstacle",
    [Reason.OFF, Reason.MANUAL, Reason.NO_DRIVER, Reason.INERT],
)
@pytest.mark.parametrize("host", [SHORT, WELL, PLENTY])
def test_a_vm_with_an_obstacle_is_neither_moved_nor_asked(
    obstacle: Reason, host: HostState
) -> None:
    decision, _ = one(vm(actual=2 * GIB, available=0, obstacle=obstacle), host)
    assert (decision.reason, decision.target, decision.poll) == (obstacle, None, False)


def test_demand_and_peak_are_followed_during_a_hold() -> None:
    held = vm(actual=4 * GIB, available=GIB, obstacle=Reason.MANUAL)
    memory = after(held)
    later = replace(held, sample=Sample(300, 4 * GIB, 3 * GIB, 0))
    decision, _ = one(later, now=300, memory=memory)
    assert (decision.demand, decision.peak) == (GIB, 2 * GIB)


def test_without_statistics_nothing_is_taken() -> None:
    assert one(replace(vm(), sample=None), SHORT)[0].reason is Reason.NO_STATISTICS
    assert one(vm(taken=0), SHORT, now=31)[0].reason is Reason.STALE


def test_after_a_restart_relief_is_at_once_and_reclaim_waits_for_a_sample() -> None:
    rich = vm(available=3 * GIB, taken=5)
    memory = {"vm": replace(after(rich, now=5)["vm"], current=False)}
    assert one(rich, SHORT, now=6, memory=memory)[0].reason is Reason.STALE
    newer = replace(rich, sample=Sample(7, 4 * GIB, 3 * GIB, 0))
    assert one(newer, SHORT, now=8, memory=memory)[0].reason is Reason.RECLAIM
    needy = vm(actual=2 * GIB, available=0, taken=5)
    memory = {"vm": replace(after(needy, SHORT, now=5)["vm"], current=False, target=2 * GIB)}
    assert one(needy, WELL, now=6, memory=memory)[0].reason is Reason.RELIEF


def test_another_front_end_and_another_driver_begin_without_a_past() -> None:
    busy = vm(available=0)
    memory = after(busy)
    idle = vm(available=3 * GIB, taken=1)
    assert one(replace(idle, guest="another"), now=1, memory=memory)[0].peak == GIB
    assert one(idle, now=1, memory=memory)[0].peak > 3 * GIB
    booting = replace(idle, sample=None, obstacle=Reason.NO_DRIVER)
    memory = {"vm": one(booting, memory=memory)[1]}
    assert one(idle, now=1, memory=memory)[0].peak == GIB


@pytest.mark.parametrize("lie", [0, 1 << 63])
def test_a_guest_that_lies_hurts_only_itself(lie: int) -> None:
    honest, liar = vm(available=3 * GIB), vm(available=lie)
    alone = decide(0, SHORT, {"honest": honest}, {}).decisions["honest"]
    told = decide(0, SHORT, {"honest": honest, "liar": liar}, {}).decisions
    assert (told["honest"].target or 0) >= (alone.target or 0)
    assert (told["liar"].target or 4 * GIB) >= liar.floor


def test_squeezed_vms_are_asked_every_tick_and_all_while_the_host_is_short() -> None:
    assert one(vm(actual=2 * GIB))[0].poll
    assert not one(vm())[0].poll
    assert one(vm(), SHORT)[0].poll


def test_a_vm_above_its_ceiling_gives_no_more_than_its_share() -> None:
    """A ceiling that was lowered below the present target bounds what is given back."""
    figures = vm(available=3 * GIB, settings=VmSettings(ceiling=2 * GIB))
    decision, _ = one(figures, SHORT)
    assert decision.target == 3 * GIB


def test_a_pinned_vm_is_given_what_it_needs_and_never_asked() -> None:
    """Nothing that it gave would come back, for example after `vhost-balloonctl pause`."""
    squeezed = vm(actual=2 * GIB, available=GIB, obstacle=Reason.PINNED)
    squeezed = replace(squeezed, detail="poison")
    for host, reason, detail in (
        (SHORT, Reason.PINNED, "poison"),
        (WELL, Reason.PINNED, "poison"),
        (PLENTY, Reason.REGROW, ""),
    ):
        decision, _ = one(squeezed, host)
        assert (decision.reason, decision.detail) == (reason, detail)
    needy = replace(squeezed, sample=Sample(0, 2 * GIB, 0, 0))
    for host in (SHORT, WELL, PLENTY):
        decision, _ = one(needy, host)
        assert decision.reason is Reason.RELIEF
        assert (decision.target or 0) > 2 * GIB

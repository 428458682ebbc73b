"""What a short host takes, and what a host with plenty gives back: who, and how much."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from tests.policy.figures import GIB, MIB, PLENTY, SHORT, one, vm
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.policy.constants import GIVE, STEP, TICK
from vhost_balloon.policy.decide import HostState, decide, judge
from vhost_balloon.policy.inputs import HostFigures, Sample, VmFigures, VmSettings
from vhost_balloon.policy.memory import Memory


def small(count: int) -> dict[str, VmFigures]:
    """VMs of 1 GiB that use nearly nothing and occupy all."""
    sample = Sample(0, GIB, 900 * MIB, 0)
    figures = VmFigures("qemu", GIB, GIB, GIB, GIB, sample)
    return {f"vm{n}": figures for n in range(count)}


def taken(host: HostState, vms: Mapping[str, VmFigures]) -> dict[str, int]:
    """What each VM is asked for."""
    told = decide(0, host, vms, {}).decisions
    return {
        name: vms[name].actual - decision.target
        for name, decision in told.items()
        if decision.target is not None
    }


def test_a_short_host_takes_what_is_missing_in_proportion_to_what_each_can_spare() -> None:
    vms = {"rich": vm(available=3 * GIB), "poor": vm(available=2 * GIB), "full": vm(available=GIB)}
    told = decide(0, SHORT, vms, {}).decisions
    asked = taken(SHORT, vms)
    assert sum(asked.values()) == pytest.approx(GIB, rel=0.001)
    parts = [asked[name] / told[name].spare for name in vms]
    assert parts == pytest.approx([parts[0]] * 3)


@pytest.mark.parametrize("missing", [15 * MIB, 16 * MIB, 40 * MIB, GIB, 3 * GIB, 20 * GIB])
def test_a_host_is_not_left_short_because_each_share_is_too_small(missing: int) -> None:
    """Of 200 VMs that share 3 GiB, none would be asked for 16 MiB."""
    host = judge(HostFigures(20 * GIB - missing, 256 * GIB), 20 * GIB)
    asked = taken(host, small(200))
    assert missing - STEP < sum(asked.values()) <= missing
    assert all(take >= STEP for take in asked.values())


def test_no_vm_can_spare_more_than_the_host_has_in_use() -> None:
    """Whatever its daemon says: others would not be asked for what it does not give."""
    host = judge(HostFigures(4 * GIB, 16 * GIB), 5 * GIB)
    lie = VmFigures("qemu", 60 * GIB, 60 * GIB, 60 * GIB, 60 * GIB, Sample(0, 60 * GIB, 60 * GIB))
    asked = taken(host, {"liar": lie, **small(4)})
    assert all(asked[name] >= STEP for name in small(4))
    assert decide(0, host, {"liar": lie}, {}).decisions["liar"].spare < 12 * GIB


def play(host: HostState, vms: dict[str, VmFigures], bad: set[str], ticks: int) -> dict[str, int]:
    """The targets after ticks in which the bad VMs' daemons said that they obey, and others did."""
    memory: Memory = {}
    for tick in range(ticks):
        now = tick * TICK
        fresh = {
            name: replace(of, sample=replace(of.sample, taken=now))
            for name, of in vms.items()
            if of.sample is not None
        }
        outcome = decide(now, host, fresh, memory)
        memory = outcome.memory
        for name, decision in outcome.decisions.items():
            if decision.target is not None and name not in bad:
                vms[name] = replace(vms[name], target=decision.target, actual=decision.target)
    return {name: of.target for name, of in vms.items()}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_those_that_ignore_orders_keep_no_other_from_growing(count: int) -> None:
    """The surplus is enough for one of them at a time."""
    host = judge(HostFigures(4 * GIB + 400 * MIB, 64 * GIB), 2 * GIB)
    bad = {f"bad{n}": vm(actual=GIB) for n in range(count)}
    vms = {**bad, "a": vm(actual=3 * GIB), "b": vm(actual=3 * GIB)}
    targets = play(host, vms, {*bad}, 200)
    assert targets == {**dict.fromkeys(bad, GIB), "a": 4 * GIB, "b": 4 * GIB}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_those_that_ignore_orders_keep_no_other_from_giving(count: int) -> None:
    host = judge(HostFigures(2 * GIB - 20 * MIB, 64 * GIB), 2 * GIB)
    bad = {f"bad{n}": vm(available=3 * GIB) for n in range(count)}
    targets = play(host, {**bad, "a": vm(available=2 * GIB)}, {*bad}, 15)
    assert {targets[name] for name in bad} == {4 * GIB}
    assert targets["a"] <= 4 * GIB - 4 * STEP


def test_plenty_goes_back_slowly_and_by_weight() -> None:
    light, heavy = vm(actual=2 * GIB), vm(actual=2 * GIB, settings=VmSettings(weight=300))
    told = decide(0, PLENTY, {"light": light, "heavy": heavy}, {}).decisions
    surplus = int((8 - 2 * 2) * GIB * GIVE)
    assert told["light"].target == 2 * GIB + surplus // 4
    assert told["heavy"].target == 2 * GIB + surplus * 3 // 4
    assert told["heavy"].reason is Reason.REGROW


def test_the_last_bit_below_the_ceiling_is_given_back() -> None:
    decision, _ = one(vm(actual=4 * GIB - 5 * MIB), PLENTY)
    assert (decision.reason, decision.target) == (Reason.REGROW, 4 * GIB)


def test_a_vm_of_the_least_weight_grows_again_too() -> None:
    """Its slack is below a step."""
    low = vm(actual=2 * GIB, settings=VmSettings(weight=1))
    told = decide(0, PLENTY, {"low": low, "other": vm(actual=3 * GIB)}, {}).decisions
    assert told["low"].target == 2 * GIB + STEP
    assert told["other"].reason is Reason.REGROW


def test_of_many_vms_those_that_lack_most_grow_first() -> None:
    """Of 50 that shared in it, none would get a step."""
    vms = {f"vm{n}": vm(actual=3 * GIB - n * 20 * MIB) for n in range(50)}
    told = decide(0, PLENTY, vms, {}).decisions
    count = int(4 * GIB * GIVE) // STEP
    reasons = [decision.reason for decision in told.values()]
    assert reasons == [Reason.TOO_SMALL] * (50 - count) + [Reason.REGROW] * count


def test_a_surplus_below_a_step_is_kept() -> None:
    host = judge(HostFigures(4 * GIB + 300 * MIB, 64 * GIB), 2 * GIB)
    told = decide(0, host, {"a": vm(actual=2 * GIB), "b": vm()}, {}).decisions
    assert told["a"].reason is Reason.TOO_SMALL
    assert told["b"].reason is Reason.NOT_NEEDED

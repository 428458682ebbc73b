"""VMs that are not squeezed are looked at less often while the host is well."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.support.fakes.policed_vms import (
    SHORT,
    SIZE,
    WELL,
    FakeHost,
    FakeVm,
    reason,
    running,
    ticks,
)
from tests.support.helpers import GIB
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.policy.constants import TICK
from vhost_balloon.policy.inputs import VmSettings
from vhost_balloon.policy.settings import Mode, PolicySettings


async def test_vms_of_a_host_that_is_well_are_left_alone(autojump_clock: MockClock) -> None:
    host = FakeHost(available=WELL)
    policy = host.policy(Mode.DRY_RUN)
    everyone: set[str] = {*host.guests}
    async with running(policy):
        await ticks(8)
        assert host.seen == [everyone, set(), set(), set(), set(), everyone, set(), set()]
        assert {reason(policy, name) for name in everyone} == {Reason.NOT_NEEDED}
        assert policy.report().vms["web1"].decision.age == pytest.approx(4), "of its last figures"
        host.guests["web3"] = FakeVm()
        host.available = SHORT
        await trio.sleep(TICK)
        assert host.seen[-1] == everyone | {"web3"}, "at once when it becomes short"
        assert policy.report().vms.keys() == host.seen[-1]
        await trio.sleep(3 * TICK)
        assert host.seen[-3:] == [host.seen[-1]] * 3, "and at each tick while it is"


async def test_squeezed_vms_are_looked_at_every_tick(autojump_clock: MockClock) -> None:
    host = FakeHost(available=WELL)
    host.guests["web1"].target = 2 * GIB
    policy = host.policy()
    async with running(policy):
        await ticks(3)
        assert host.seen == [{"web1", "web2"}, {"web1"}, {"web1"}]
        host.guests["web1"].demand = 2 * GIB
        await trio.sleep(TICK)
        assert host.guests["web1"].target == SIZE, "relief within a tick"
        host.guests["web1"].answers = False
        await trio.sleep(TICK)
        assert policy.report().vms.keys() == {"web2"}, "no old figures of a VM that is squeezed"


async def test_a_hold_that_ends_is_noticed_within_a_tick(autojump_clock: MockClock) -> None:
    """The operator's order may have left the guest with too little."""
    host = FakeHost(available=WELL)
    vm = host.guests["web1"]
    vm.held, vm.target, vm.demand = True, GIB, GIB
    async with running(host.policy()):
        await ticks(2)
        assert host.seen == [{"web1", "web2"}, {"web1"}]
        vm.held = False
        await trio.sleep(TICK)
        assert vm.target == SIZE


async def test_a_vm_that_did_not_answer_is_asked_at_the_next_tick(
    autojump_clock: MockClock,
) -> None:
    host = FakeHost(available=WELL)
    vm = host.guests["web1"]
    vm.target = vm.demand = 2 * GIB
    vm.answers = False
    async with running(host.policy()):
        await ticks(2)
        assert host.seen == [{"web1", "web2"}, {"web1"}]
        vm.answers = True
        await trio.sleep(TICK)
        assert vm.target == SIZE


@pytest.mark.parametrize("change", ["settings", "hold", "release"])
async def test_what_the_operator_changes_shows_at_the_next_tick(
    autojump_clock: MockClock, change: str
) -> None:
    host = FakeHost(available=WELL)
    policy = host.policy(Mode.DRY_RUN)
    async with running(policy):
        await ticks(2)
        match change:
            case "settings":
                policy.change(PolicySettings(Mode.DRY_RUN, GIB, defaults=VmSettings(weight=50)))
            case "hold":
                await policy.hold("web1", None)
            case "release":
                await policy.release("web1")
        await trio.sleep(TICK)
        assert host.seen == [{"web1", "web2"}, set(), {"web1", "web2"}]
        assert (reason(policy) is Reason.MANUAL) is (change == "hold")
        weight = policy.report().vms["web1"].figures.settings.weight
        assert weight == (50 if change == "settings" else 100)


async def test_a_look_without_a_decision_counts(autojump_clock: MockClock) -> None:
    """It came too soon after the last one; what it found is not forgotten."""
    host = FakeHost(available=WELL)
    host.takes = 1.5
    policy = host.policy(Mode.DRY_RUN)
    async with running(policy):
        await trio.sleep(1.6)
        host.takes = 0
        await policy.hold("web1", None)
        await trio.sleep(3)
        assert host.seen == [{"web1", "web2"}, {"web1", "web2"}, set()]
        assert reason(policy) is Reason.MANUAL

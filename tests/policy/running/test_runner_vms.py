"""The policy's loop, whatever guests and their daemons do."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from tests.support.end_to_end import LogLines
from tests.support.fakes.policed_vms import (
    PLENTY,
    SHORT,
    SIZE,
    WELL,
    FakeHost,
    FakeVm,
    reason,
    running,
    squeezed,
    ticks,
)
from tests.support.helpers import GIB
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.policy.constants import HOLD, REST, TICK
from vhost_balloon.policy.inputs import default_floor
from vhost_balloon.policy.past import FORGET
from vhost_balloon.policy.settings import Mode, PolicySettings

# Orders that are not accepted


async def test_a_refused_order_is_not_believed(
    autojump_clock: MockClock, log_lines: LogLines
) -> None:
    host = FakeHost(available=SHORT)
    host.guests["web1"].refuses = "Parameter 'policy' is unexpected"
    policy = host.policy()
    async with running(policy):
        await ticks(1)
        report = policy.report().vms["web1"]
        assert report.decision.reason is Reason.RECLAIM
        assert report.decision.detail == "Parameter 'policy' is unexpected"
        assert report.decisions == {}
        await trio.sleep(4 * TICK)
        assert reason(policy) is Reason.HELD
        assert host.guests["web2"].target < SIZE, "others are asked instead"
        said = log_lines.having("an order was refused")
        assert said == ["warning: web1: an order was refused: Parameter 'policy' is unexpected"]
        host.guests["web1"].refuses = ""
        await trio.sleep(HOLD)
        assert host.guests["web1"].target < SIZE
        assert policy.report().vms["web1"].decision.detail == ""
        assert reason(policy) is not Reason.RELIEF


async def test_a_refused_withdrawal_is_tried_again(autojump_clock: MockClock) -> None:
    host = FakeHost(1, available=WELL)
    host.guests["web1"] = FakeVm(target=2 * GIB, least=3 * GIB, refuses="busy")
    policy = host.policy()
    async with running(policy):
        await ticks(10)
        assert reason(policy) is Reason.STUCK
        host.guests["web1"].refuses = ""
        await trio.sleep(TICK)
        assert host.guests["web1"].target == 3 * GIB


async def test_a_manual_order_is_never_overridden(autojump_clock: MockClock) -> None:
    host = FakeHost()
    policy = host.policy()
    async with running(policy):
        await ticks(1)
        await policy.hold("web1", 60)
        host.guests["web1"].target = 3 * GIB
        host.available = SHORT
        await trio.sleep(20 * TICK)
        assert reason(policy) is Reason.MANUAL
        assert host.guests["web1"].target == 3 * GIB
        assert host.guests["web2"].target < 3 * GIB
        await policy.release("web1")
        host.available = PLENTY
        await trio.sleep(600)
        assert host.guests["web1"].target == SIZE


async def test_a_manual_order_while_orders_are_on_their_way(autojump_clock: MockClock) -> None:
    """Its daemon refuses; the next tick knows the VM's real target."""
    host = FakeHost(available=SHORT)
    host.takes = 0.2
    policy = host.policy()
    async with running(policy):
        await trio.sleep(0.3)
        host.guests["web1"].held, host.guests["web1"].target = True, 3 * GIB
        await trio.sleep(1)
        assert policy.report().vms["web1"].decision.detail == "held"
        await trio.sleep(TICK)
        assert reason(policy) is Reason.MANUAL
        assert host.guests["web1"].orders == []


# Lies and silence


async def test_liars_hurt_only_themselves(autojump_clock: MockClock) -> None:
    host = FakeHost(3, available=SHORT)
    host.guests["web1"].claims = SIZE
    host.guests["web2"].claims = 0
    async with running(host.policy()):
        await trio.sleep(300 * TICK)
    assert host.guests["web1"].target == default_floor(SIZE)
    assert host.guests["web2"].orders == []
    assert host.guests["web3"].target >= GIB


async def test_a_guest_that_falls_silent_gets_what_it_used(autojump_clock: MockClock) -> None:
    host = FakeHost(1)
    policy = host.policy()
    async with running(policy):
        await ticks(1)
        await squeezed(host)
        vm = host.guests["web1"]
        vm.target, vm.sampled = GIB * 3 // 2, host.clock()
        await trio.sleep(10 * TICK)
        assert policy.report().vms["web1"].decisions[Reason.SILENT] >= 1
        assert vm.target == pytest.approx(2.6 * GIB, rel=0.01), "its demand and two slacks"
        orders = len(vm.orders)
        await trio.sleep(100 * TICK)
        assert len(vm.orders) == orders, "nothing more without news"
        host.available = SHORT
        await trio.sleep(10 * TICK)
        assert len(vm.orders) == orders, "never lowered without a sample"


async def test_a_vm_without_statistics_is_never_lowered(autojump_clock: MockClock) -> None:
    host = FakeHost(available=SHORT)
    host.guests["web1"].gives_statistics = False
    policy = host.policy()
    async with running(policy):
        await ticks(50)
        assert reason(policy) is Reason.NO_STATISTICS
    assert host.guests["web1"].orders == []


# VMs and daemons that come and go


async def test_a_daemon_that_does_not_answer_for_a_while_is_not_forgotten(
    autojump_clock: MockClock,
) -> None:
    host = FakeHost(1, available=WELL)
    host.guests["web1"].demand = 3 * GIB
    policy = host.policy()
    async with running(policy):
        await ticks(3)
        host.guests["web1"].demand = GIB
        host.guests["web1"].answers = False
        await trio.sleep(10 * TICK)
        assert policy.report().vms == {}
        host.guests["web1"].answers = True
        await trio.sleep(REST)
        assert policy.report().vms["web1"].decision.peak > 2 * GIB
        host.guests["web1"].answers = False
        await trio.sleep(FORGET + 2 * REST)
        host.guests["web1"].answers = True
        await trio.sleep(REST)
        assert policy.report().vms["web1"].decision.peak == GIB


async def test_why_vms_may_be_missing_is_said_once(
    autojump_clock: MockClock, log_lines: LogLines
) -> None:
    host = FakeHost(available=WELL)
    policy = host.policy(Mode.DRY_RUN)
    host.problems = ["/run/vms cannot be read: Input/output error"]
    async with running(policy):
        await ticks(10)
        assert policy.report().problems == host.problems
        host.unreadable = "meminfo: Input/output error"
        await trio.sleep(TICK)
        assert policy.report().problems[1:] == host.problems
        host.unreadable, host.problems = "", []
        await trio.sleep(TICK)
        assert policy.report().problems == []
    assert log_lines.having("/run/vms") == [
        "warning: /run/vms cannot be read: Input/output error",
        "info: no longer: /run/vms cannot be read: Input/output error",
    ]


async def test_another_front_end_is_another_vm(autojump_clock: MockClock) -> None:
    host = FakeHost(1, available=WELL)
    host.guests["web1"].demand = 3 * GIB
    policy = host.policy()
    async with running(policy):
        await ticks(3)
        host.guests["web1"] = FakeVm(front_end=2)
        await trio.sleep(REST)
        assert policy.report().vms["web1"].decision.peak == GIB


async def test_200_vms_that_come_and_go_while_it_decides(autojump_clock: MockClock) -> None:
    host = FakeHost(200, SHORT, 256 * GIB)
    host.takes = 0.4
    policy = host.policy(settings=PolicySettings(mode=Mode.ON, reserve=20 * GIB))
    async with running(policy):
        for step in range(100):
            await trio.sleep(0.3)
            if step % 2:
                host.guests = {name: vm for name, vm in host.guests.items() if hash(name) % 3}
            else:
                host.guests = {f"web{n}": FakeVm(front_end=step) for n in range(step, step + 200)}
            assert len(policy.report().vms) <= 300
    assert host.told


@pytest.mark.parametrize("takes", [0.9, 1.5, 2.5, 10.0])
async def test_daemons_that_hang_delay_a_tick_and_lose_none(
    autojump_clock: MockClock, takes: float
) -> None:
    host = FakeHost(available=SHORT)
    host.takes = takes
    async with running(host.policy()):
        await trio.sleep(60)
    assert all(vm.target < SIZE for vm in host.guests.values())
    times = [time for time, _ in host.looks]
    assert all(TICK <= b - a <= max(TICK, 2 * takes) for a, b in pairwise(times))


async def test_decisions_are_at_least_a_second_apart(autojump_clock: MockClock) -> None:
    """A look that takes long is followed by one that does not: the second is left out."""
    host = FakeHost(available=SHORT)
    host.takes = 1.9
    policy = host.policy(Mode.DRY_RUN)
    async with running(policy):
        await trio.sleep(1.95)
        host.takes = 0
        await trio.sleep(0.5)
        assert len(host.looks) == 2
        assert policy.report().age == pytest.approx(0.55)
        await trio.sleep(2)
        assert policy.report().age == pytest.approx(0.45)

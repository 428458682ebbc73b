"""The policy's loop: its modes, what it orders and says, and the operator's orders."""

from __future__ import annotations

from dataclasses import replace
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
from tests.support.helpers import GIB, MIB
from vhost_balloon.errors import CommandError
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.policy.constants import TICK
from vhost_balloon.policy.release import Released
from vhost_balloon.policy.settings import Mode, PolicySettings

# Off


async def test_off_costs_nothing(autojump_clock: MockClock) -> None:
    host = FakeHost(available=SHORT)
    policy = host.policy(Mode.OFF)
    async with running(policy):
        await trio.sleep(3600)
        assert host.in_use() == set()
        assert host.looks == []
        assert policy.report().mode is Mode.OFF


@pytest.mark.parametrize("how", ["order", "configuration"])
async def test_switching_on_and_off(autojump_clock: MockClock, how: str) -> None:
    host = FakeHost(available=SHORT)
    policy = host.policy(Mode.OFF)

    async def switch(mode: Mode) -> None:
        if how == "order":
            await policy.set_mode(mode)
        else:
            policy.change(PolicySettings(mode=mode, reserve=GIB))

    async with running(policy):
        await trio.sleep(100)
        await switch(Mode.ON)
        await ticks(4)
        assert host.in_use() == {"files", "connections", "lock"}
        assert host.guests["web1"].orders
        target = host.guests["web1"].target
        await switch(Mode.OFF)
        await trio.sleep(100)
        looks = len(host.looks)
        await trio.sleep(100)
        assert host.in_use() == set()
        assert host.guests["web1"].target == target < SIZE, "targets stay as they are"
        assert len(host.looks) == looks
        await switch(Mode.ON)
        await switch(Mode.OFF)
        await trio.sleep(100)
        assert len(host.looks) == looks
        assert host.in_use() == set()


async def test_switching_to_and_fro_makes_no_tick_sooner(autojump_clock: MockClock) -> None:
    host = FakeHost()
    policy = host.policy()
    async with running(policy):
        for _ in range(100):
            await policy.set_mode(Mode.OFF)
            await trio.sleep(0.05)
            await policy.set_mode(Mode.ON)
            await trio.sleep(0.05)
    times = [time for time, _ in host.looks]
    assert all(b - a >= TICK for a, b in pairwise(times))


async def test_the_mode_by_order_lasts_until_the_configured_one_changes(
    autojump_clock: MockClock,
) -> None:
    settings = PolicySettings(mode=Mode.OFF)
    policy = FakeHost().policy(settings=settings)
    await policy.set_mode(Mode.DRY_RUN)
    policy.change(replace(settings, reserve=2 * GIB))
    assert policy.report().mode is Mode.DRY_RUN
    assert policy.report().configured is Mode.OFF
    policy.change(replace(settings, mode=Mode.ON))
    assert policy.report().mode is Mode.ON
    await policy.set_mode(Mode.OFF)
    policy.change(replace(settings, mode=Mode.ON, reserve=GIB))
    assert policy.report().mode is Mode.OFF


# The usual course


async def test_memory_is_taken_while_short_and_comes_back(
    autojump_clock: MockClock, log_lines: LogLines
) -> None:
    host = FakeHost(available=PLENTY)
    policy = host.policy()
    async with running(policy):
        await ticks(10)
        assert host.told == []
        assert log_lines.lines == []
        assert reason(policy) is Reason.NOT_NEEDED
        host.available = SHORT
        await trio.sleep(2 * TICK)
        vms = host.guests.values()
        assert sum(SIZE - vm.target for vm in vms) <= 2 * (GIB - SHORT)
        assert all(GIB <= vm.target < SIZE for vm in vms)
        assert policy.report().vms["web1"].decisions[Reason.RECLAIM] >= 1
        host.available = PLENTY
        await trio.sleep(600)
        assert all(vm.target == SIZE for vm in vms)
        assert policy.report().vms["web1"].reversals == 1
        before = len(host.told)
        await trio.sleep(600)
        assert len(host.told) == before
    orders = sum(len(orders) for _, orders in host.told)
    assert orders == sum(len(vm.orders) for vm in vms)
    assert log_lines.lines[0].startswith(
        "info: policy: the host is short of memory: 512 MiB available, reserve 1 GiB, k 0.50: "
        "web1 4 GiB -> 3.75 GiB (reclaim), web2 4 GiB -> 3.75 GiB (reclaim)"
    )


async def test_it_ticks_every_two_seconds_and_polls_while_short(autojump_clock: MockClock) -> None:
    host = FakeHost(available=WELL)
    async with running(host.policy()):
        await ticks(3)
        host.available = SHORT
        await trio.sleep(2 * TICK)
    assert [time for time, _ in host.looks] == [0, 2, 4, 6, 6, 8]
    assert [poll for _, poll in host.looks] == [[], [], [], [], [], ["web1", "web2"]]


async def test_many_orders_are_one_line_of_bounded_length(
    autojump_clock: MockClock, log_lines: LogLines
) -> None:
    host = FakeHost(200, SHORT, 256 * GIB)
    async with running(host.policy(settings=PolicySettings(mode=Mode.ON, reserve=20 * GIB))):
        await ticks(1)
    [line] = [line for line in log_lines.lines if "(reclaim)" in line]
    assert line.count("->") == 10
    assert line.endswith(", and 190 more")


async def test_dry_run_orders_nothing_and_does_not_believe_itself(
    autojump_clock: MockClock, log_lines: LogLines
) -> None:
    host = FakeHost(available=SHORT)
    policy = host.policy(Mode.DRY_RUN)
    async with running(policy):
        await ticks(1)
        first = policy.report()
        await trio.sleep(10 * TICK)
        last = policy.report()
    assert first.vms["web1"].decision.target is not None
    assert first.vms["web1"].decision.target == last.vms["web1"].decision.target
    assert last.vms["web1"].decisions == {}
    assert not any(vm.orders for vm in host.guests.values())
    assert host.told == []
    [line] = log_lines.lines
    assert line.endswith("no orders: dry-run")


async def test_dry_run_repeats_the_withdrawal_of_a_target_that_is_not_reached(
    autojump_clock: MockClock,
) -> None:
    host = FakeHost(1, available=WELL)
    host.guests["web1"] = FakeVm(target=2 * GIB, least=3 * GIB)
    policy = host.policy(Mode.DRY_RUN)
    async with running(policy):
        await ticks(8)
        assert reason(policy) is Reason.STUCK
        await trio.sleep(5 * TICK)
        assert reason(policy) is Reason.STUCK


async def test_a_guest_that_takes_back_gets_more_at_the_next_tick(
    autojump_clock: MockClock,
) -> None:
    host = FakeHost(1)
    policy = host.policy()
    async with running(policy):
        await ticks(1)
        await squeezed(host)
        host.guests["web1"].least = host.guests["web1"].target + 64 * MIB
        await trio.sleep(TICK)
        assert policy.report().vms["web1"].decisions[Reason.RELIEF] == 1
        assert host.guests["web1"].target == SIZE


# Holds, and giving everything back


async def test_holds_are_passed_on_without_a_running_policy(autojump_clock: MockClock) -> None:
    host = FakeHost()
    policy = host.policy(Mode.OFF)
    async with running(policy):
        await policy.hold("web1", None)
        assert [vm.held for vm in host.guests.values()] == [True, False]
        await policy.release("web1")
        assert [vm.held for vm in host.guests.values()] == [False, False]
        with pytest.raises(CommandError):
            await policy.hold("nobody", 5)
        await trio.sleep(2 * TICK)
        assert host.in_use() == set()


@pytest.mark.parametrize("mode", Mode)
async def test_everything_is_given_back_in_any_mode(autojump_clock: MockClock, mode: Mode) -> None:
    host = FakeHost(3, available=4 * GIB)
    for name, target in (("web1", 2 * GIB), ("web2", GIB * 3 // 2)):
        host.guests[name].target = target
    host.guests["web2"].held = True
    policy = host.policy(mode)
    async with running(policy):
        await ticks(1)
        if mode is not Mode.ON:
            assert host.guests["web1"].orders == []
        assert await policy.release_all() == Released(["web1", "web2"])
        assert not host.guests["web2"].held
        before = host.guests["web1"].target
        await trio.sleep(TICK)
        step = host.guests["web1"].target - before
        assert 0 < step < 3 * GIB * 0.05 + 1, "at the pace of regrowth"
        assert policy.report().problems
        assert policy.report().releasing
        await trio.sleep(400)
        assert all(vm.target == SIZE for vm in host.guests.values())
        assert await policy.release_all() == Released([])
        await trio.sleep(3 * TICK)
        assert policy.report().problems == []
        assert bool(host.in_use()) is (mode is not Mode.OFF)


async def test_giving_back_waits_for_the_host_and_ends_by_order(autojump_clock: MockClock) -> None:
    host = FakeHost(1, available=SHORT)
    host.guests["web1"].target = 2 * GIB
    policy = host.policy(Mode.OFF)
    async with running(policy):
        assert await policy.release_all() == Released(["web1"])
        await trio.sleep(10 * TICK)
        assert host.guests["web1"].orders == []
        assert policy.report().vms["web1"].decision.target is None
        host.available = PLENTY
        await trio.sleep(TICK)
        assert host.guests["web1"].orders
        await policy.set_mode(Mode.OFF)
        orders = len(host.guests["web1"].orders)
        await trio.sleep(10 * TICK)
        assert len(host.guests["web1"].orders) == orders
        assert host.in_use() == set()


async def test_while_giving_back_a_short_host_still_takes(autojump_clock: MockClock) -> None:
    host = FakeHost(2, available=WELL)
    host.guests["web1"].target = 2 * GIB
    policy = host.policy()
    async with running(policy):
        await ticks(1)
        await policy.release_all()
        await trio.sleep(TICK)
        assert host.guests["web1"].target > 2 * GIB
        host.available = SHORT
        await trio.sleep(2 * TICK)
        assert host.guests["web2"].target < SIZE


async def test_giving_back_leaves_vms_alone_that_are_not_the_policys(
    autojump_clock: MockClock,
) -> None:
    host = FakeHost(2, available=PLENTY)
    host.guests["web1"].target = host.guests["web2"].target = 2 * GIB
    host.guests["web2"].held = True
    host.guests["web2"].refuses = "its daemon gives no answer"
    policy = host.policy(Mode.OFF)
    async with running(policy):
        assert (await policy.release_all()).left == ["web1"]
        await trio.sleep(600)
    assert host.guests["web1"].target == SIZE
    assert host.guests["web2"].target == 2 * GIB


@pytest.mark.parametrize("why", ["holder", "missing"])
async def test_giving_back_is_refused_where_it_cannot_be_done(
    autojump_clock: MockClock, why: str
) -> None:
    host = FakeHost()
    setattr(host, why, "not here")
    policy = host.policy(Mode.OFF)
    async with running(policy):
        with pytest.raises(CommandError, match="not here"):
            await policy.release_all()
        await trio.sleep(10 * TICK)
        assert host.in_use() == set()


@pytest.mark.parametrize("why", ["holder", "missing"])
async def test_giving_back_that_is_refused_while_orders_are_on_their_way(
    autojump_clock: MockClock, why: str
) -> None:
    host = FakeHost(available=SHORT)
    host.takes = 0.5
    policy = host.policy()
    async with running(policy):
        await trio.sleep(0.7)
        await policy.set_mode(Mode.OFF)
        setattr(host, why, "not here")
        policy.change(PolicySettings(mode=Mode.ON, reserve=GIB, zfs_arc=True))
        with pytest.raises(CommandError, match="not here"):
            await policy.release_all()
        assert "connections" in host.in_use(), "a tick is under way"
        await trio.sleep(2 * TICK)
        assert host.in_use() == set()
    [(_, orders)] = host.told
    assert [order.vm for order in orders] == ["web1", "web2"]

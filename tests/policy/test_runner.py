"""The policy's loop, whatever the host, the guests, their daemons and the clock do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.support.end_to_end import LogLines
from tests.support.fakes.policed_vms import SIZE, FakeHost, FakeVm
from tests.support.helpers import GIB, MIB
from vhost_balloon.errors import CommandError, OperatorError
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.policy.constants import FADE, HOLD, TICK
from vhost_balloon.policy.inputs import VmSettings, default_floor
from vhost_balloon.policy.memory_file import MemoryFile
from vhost_balloon.policy.past import FORGET
from vhost_balloon.policy.runner import Policy
from vhost_balloon.policy.settings import Mode, PolicySettings

SHORT = GIB // 2
WELL = GIB * 3 // 2
PLENTY = 8 * GIB
"""Available with a reserve of 1 GiB."""


@asynccontextmanager
async def running(policy: Policy) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(policy.run)
        yield
        nursery.cancel_scope.cancel()


async def ticks(count: int) -> None:
    """Let so many ticks begin and end."""
    await trio.sleep(count * TICK - TICK / 2)


def reason(policy: Policy, name: str = "web1") -> Reason:
    return policy.report().vms[name].decision.reason


async def squeezed(host: FakeHost) -> None:
    """Let a running policy squeeze the VMs, and the host be well again."""
    host.available = SHORT
    await trio.sleep(3 * TICK)
    host.available = WELL
    await trio.sleep(TICK)
    assert all(vm.target < SIZE for vm in host.guests.values())


# Off


async def test_off_costs_nothing(autojump_clock: MockClock) -> None:
    host = FakeHost(available=SHORT)
    policy = host.policy(Mode.OFF)
    policy.open()
    async with running(policy):
        await trio.sleep(3600)
        assert host.in_use() == set()
        assert host.looks == []
        assert policy.report().mode is Mode.OFF


@pytest.mark.parametrize("how", ["order", "configuration"])
async def test_switching_on_and_off(autojump_clock: MockClock, how: str) -> None:
    host = FakeHost(available=SHORT)
    policy = host.policy(Mode.OFF)

    def switch(mode: Mode) -> None:
        if how == "order":
            policy.set_mode(mode)
        else:
            policy.change(PolicySettings(mode=mode, reserve=GIB))

    async with running(policy):
        await trio.sleep(100)
        switch(Mode.ON)
        await ticks(4)
        assert host.in_use() == {"files", "connections", "lock"}
        assert host.guests["web1"].orders
        target = host.guests["web1"].target
        switch(Mode.OFF)
        await trio.sleep(100)
        looks = len(host.looks)
        await trio.sleep(100)
        assert host.in_use() == set()
        assert host.guests["web1"].target == target < SIZE, "targets stay as they are"
        assert len(host.looks) == looks
        switch(Mode.ON)
        switch(Mode.OFF)
        await trio.sleep(100)
        assert len(host.looks) == looks
        assert host.in_use() == set()


async def test_switching_to_and_fro_makes_no_tick_sooner(autojump_clock: MockClock) -> None:
    host = FakeHost()
    policy = host.policy()
    async with running(policy):
        for _ in range(100):
            policy.set_mode(Mode.OFF)
            await trio.sleep(0.05)
            policy.set_mode(Mode.ON)
            await trio.sleep(0.05)
    times = [time for time, _ in host.looks]
    assert all(b - a >= TICK for a, b in pairwise(times))


async def test_the_mode_by_order_lasts_until_the_configured_one_changes(
    autojump_clock: MockClock,
) -> None:
    settings = PolicySettings(mode=Mode.OFF)
    policy = FakeHost().policy(settings=settings)
    policy.set_mode(Mode.DRY_RUN)
    policy.change(replace(settings, reserve=2 * GIB))
    assert policy.report().mode is Mode.DRY_RUN
    assert policy.report().configured is Mode.OFF
    policy.change(replace(settings, mode=Mode.ON))
    assert policy.report().mode is Mode.ON
    policy.set_mode(Mode.OFF)
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
    assert [time for time, _ in host.looks] == [0, 2, 4, 6, 8]
    assert [poll for _, poll in host.looks] == [[], [], [], [], ["web1", "web2"]]


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


# Orders that are not accepted


async def test_a_refused_order_is_not_believed(
    autojump_clock: MockClock, log_lines: LogLines
) -> None:
    host = FakeHost(available=SHORT)
    host.guests["web1"].refuses = "Parameter 'policy' is unexpected"
    policy = host.policy()
    async with running(policy):
        await ticks(5)
        report = policy.report().vms["web1"]
        assert report.decision.reason is Reason.RECLAIM
        assert report.decision.detail == "Parameter 'policy' is unexpected"
        assert report.decisions == {}
        assert host.guests["web2"].target < SIZE, "others are asked instead"
        said = log_lines.having("an order was refused")
        assert said == ["warning: web1: an order was refused: Parameter 'policy' is unexpected"]
        host.guests["web1"].refuses = ""
        await trio.sleep(2 * TICK)
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
        await trio.sleep(8 * TICK)
        assert policy.report().vms["web1"].decisions[Reason.SILENT] >= 1
        assert vm.target == pytest.approx(1.8 * GIB, rel=0.01), "its demand and its slack"
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
        await trio.sleep(TICK)
        assert policy.report().vms["web1"].decision.peak > 2 * GIB
        host.guests["web1"].answers = False
        await trio.sleep(FORGET + 2 * TICK)
        host.guests["web1"].answers = True
        await trio.sleep(TICK)
        assert policy.report().vms["web1"].decision.peak == GIB


async def test_another_front_end_is_another_vm(autojump_clock: MockClock) -> None:
    host = FakeHost(1, available=WELL)
    host.guests["web1"].demand = 3 * GIB
    policy = host.policy()
    async with running(policy):
        await ticks(3)
        host.guests["web1"] = FakeVm(front_end=2)
        await trio.sleep(TICK)
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


# The host


async def test_a_host_that_cannot_be_read_decides_nothing(
    autojump_clock: MockClock, log_lines: LogLines
) -> None:
    host = FakeHost(available=SHORT)
    policy = host.policy()
    async with running(policy):
        await ticks(2)
        targets = [vm.target for vm in host.guests.values()]
        log_lines.lines.clear()
        host.unreadable = "meminfo: Input/output error"
        await trio.sleep(10 * TICK)
        report = policy.report()
        assert not report.readable
        assert report.problems == ["the policy decides nothing: meminfo: Input/output error"]
        assert report.age > 9 * TICK
        assert [vm.target for vm in host.guests.values()] == targets
        assert log_lines.lines == [f"warning: {report.problems[0]}"]
        host.unreadable = ""
        await trio.sleep(2 * TICK)
        assert policy.report().readable
        assert policy.report().problems == []
        assert host.guests["web1"].target < targets[0]
        assert reason(policy) is not Reason.RELIEF


async def test_files_that_are_missing_at_the_start_are_the_operators_mistake(
    autojump_clock: MockClock,
) -> None:
    host = FakeHost()
    host.missing = "no meminfo: do this"
    host.policy(Mode.OFF).open()
    with pytest.raises(OperatorError, match="do this"):
        host.policy(Mode.DRY_RUN).open()


async def test_files_that_are_missing_later(autojump_clock: MockClock, log_lines: LogLines) -> None:
    host = FakeHost(available=SHORT)
    host.missing = "no meminfo: do this"
    policy = host.policy(Mode.OFF)
    async with running(policy):
        with pytest.raises(CommandError, match="do this"):
            policy.set_mode(Mode.ON)
        assert policy.report().mode is Mode.OFF
        policy.change(PolicySettings(mode=Mode.ON))
        await ticks(10)
        assert not policy.report().readable
        assert len(log_lines.lines) == 1
        host.missing = ""
        await trio.sleep(3 * TICK)
        assert policy.report().readable
        assert host.told


async def test_another_cgroup_is_read_at_once(autojump_clock: MockClock) -> None:
    host = FakeHost()
    policy = host.policy()
    opened: list[str | None] = []
    policy._open_host = lambda settings: opened.append(settings.cgroup) or host.open(settings)  # type: ignore[func-returns-value]
    async with running(policy):
        await ticks(1)
        policy.change(PolicySettings(mode=Mode.ON, cgroup="/vms"))
        await ticks(2)
        policy.change(PolicySettings(mode=Mode.ON, cgroup="/vms", reserve=GIB))
        await ticks(2)
    assert opened == [None, "/vms"]


async def test_settings_that_cannot_work_are_said_once(
    autojump_clock: MockClock, log_lines: LogLines
) -> None:
    settings = PolicySettings(
        mode=Mode.ON, reserve=12 * GIB, defaults=VmSettings(floor=3 * GIB), vms={}
    )
    host = FakeHost(8, available=PLENTY)
    policy = host.policy(settings=settings)
    async with running(policy):
        await ticks(10)
        assert policy.report().problems == [
            "the policy's reserve of 12 GiB is more than half of the host's 16 GiB: 8 GiB is used",
            "the VMs' floors add up to 24 GiB, more than the host's 16 GiB: the policy cannot keep "
            "its reserve",
        ]
        assert len(log_lines.having("warning: ")) == 2
        policy.change(PolicySettings(mode=Mode.ON, reserve=GIB))
        await ticks(2)
        assert policy.report().problems == []


# One policy a host


async def test_a_second_hub_decides_nothing_and_takes_over(
    autojump_clock: MockClock, log_lines: LogLines
) -> None:
    host = FakeHost(available=SHORT)
    host.holder = "process 5 decides on this host"
    policy = host.policy()
    async with running(policy):
        await ticks(10)
        assert policy.report().problems == [host.holder]
        assert policy.report().vms == {}
        assert host.looks == []
        assert log_lines.lines == [f"warning: {host.holder}"]
        host.holder = None
        await trio.sleep(TICK)
        assert policy.report().problems == []
        assert host.told
        host.holder = "process 6 decides on this host"
        await trio.sleep(TICK)
        assert policy.report().vms == {}
        assert "connections" not in host.in_use()


# Clocks and restarts


@pytest.mark.parametrize("jump", [3600.0, -500.0, 1e9, -1e9])
async def test_a_clock_that_jumps(autojump_clock: MockClock, jump: float) -> None:
    host = FakeHost(available=WELL)
    policy = host.policy()
    async with running(policy):
        await ticks(3)
        host.clock_offset += jump
        await trio.sleep(3 * TICK)
        assert host.told == []
        host.available = SHORT
        await trio.sleep(2 * TICK)
        assert host.guests["web1"].target < SIZE
        assert policy.report().age < TICK
        target = host.guests["web1"].target
        host.guests["web1"].demand = target
        host.available = WELL
        await trio.sleep(2 * TICK)
        assert host.guests["web1"].target == SIZE, "relief works"


async def test_a_restart_gives_at_once_and_takes_after_a_new_sample(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    host = FakeHost(2)
    host.guests["web1"].demand = 2 * GIB
    async with running(host.policy(file=MemoryFile(tmp_path))):
        await ticks(1)
        await squeezed(host)
    at = host.clock()
    host.guests["web1"].sampled = host.guests["web2"].sampled = at - TICK / 2
    host.guests["web1"].least = host.guests["web1"].target + 64 * MIB  # it took back
    orders = len(host.guests["web2"].orders)
    host.available = SHORT
    policy = host.policy(file=MemoryFile(tmp_path))
    async with running(policy):
        await ticks(1)
        assert reason(policy) is Reason.RELIEF
        assert reason(policy, "web2") is Reason.STALE
        assert len(host.guests["web2"].orders) == orders
        host.guests["web2"].sampled = None
        await trio.sleep(TICK)
        assert len(host.guests["web2"].orders) > orders


async def test_memory_is_kept_over_a_restart(autojump_clock: MockClock, tmp_path: Path) -> None:
    host = FakeHost(1, available=WELL)
    host.guests["web1"].demand = 3 * GIB
    async with running(host.policy(file=MemoryFile(tmp_path))):
        await ticks(3)
    host.guests["web1"].demand = GIB
    await trio.sleep(FADE)
    policy = host.policy(file=MemoryFile(tmp_path))
    async with running(policy):
        await ticks(1)
        assert policy.report().vms["web1"].decision.peak == pytest.approx(2 * GIB, rel=0.01)


async def test_the_pause_after_an_unreachable_target_is_written_down(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    host = FakeHost(1, available=WELL)
    host.guests["web1"] = FakeVm(target=2 * GIB, least=3 * GIB)
    file = MemoryFile(tmp_path)
    async with running(host.policy(file=file)):
        await ticks(10)
        assert host.guests["web1"].target == 3 * GIB
        held_until = MemoryFile(tmp_path).read(host.clock())["web1"].held_until
        assert held_until == pytest.approx(host.clock() + HOLD, abs=4 * TICK)


async def test_a_bug_ends_the_run_and_the_next_goes_on(autojump_clock: MockClock) -> None:
    host = FakeHost(available=SHORT)
    policy = host.policy()
    real = host.look

    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    host.look = fail  # type: ignore[assignment, method-assign]
    with pytest.raises(ZeroDivisionError):
        await policy.run()
    assert host.in_use() == set()
    host.look = real  # type: ignore[method-assign]
    async with running(policy):
        await ticks(3)
        assert host.told


async def test_the_end_closes_everything_and_leaves_targets(autojump_clock: MockClock) -> None:
    host = FakeHost()
    async with running(host.policy()):
        await ticks(1)
        await squeezed(host)
        targets = [vm.target for vm in host.guests.values()]
    assert host.in_use() == set()
    assert [vm.target for vm in host.guests.values()] == targets


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
        assert "connections" not in host.in_use()


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
        assert await policy.release_all() == ["web1", "web2"]
        assert not host.guests["web2"].held
        before = host.guests["web1"].target
        await trio.sleep(TICK)
        step = host.guests["web1"].target - before
        assert 0 < step < 3 * GIB * 0.05 + 1, "at the pace of regrowth"
        assert policy.report().problems
        await trio.sleep(400)
        assert all(vm.target == SIZE for vm in host.guests.values())
        assert await policy.release_all() == []
        await trio.sleep(3 * TICK)
        assert policy.report().problems == []
        assert bool(host.in_use()) is (mode is not Mode.OFF)


async def test_giving_back_waits_for_the_host_and_ends_by_order(autojump_clock: MockClock) -> None:
    host = FakeHost(1, available=SHORT)
    host.guests["web1"].target = 2 * GIB
    policy = host.policy(Mode.OFF)
    async with running(policy):
        assert await policy.release_all() == ["web1"]
        await trio.sleep(10 * TICK)
        assert host.guests["web1"].orders == []
        assert policy.report().vms["web1"].decision.target is None
        host.available = PLENTY
        await trio.sleep(TICK)
        assert host.guests["web1"].orders
        policy.set_mode(Mode.OFF)
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
        assert await policy.release_all() == ["web1"]
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

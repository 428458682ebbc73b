"""The policy's loop, whatever the host, another hub, the clock and a restart do."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.support.end_to_end import LogLines
from tests.support.fakes.policed_vms import (
    PLENTY,
    SHORT,
    SIZE,
    WELL,
    FakeFiles,
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
from vhost_balloon.policy.constants import FADE, HOLD, TICK
from vhost_balloon.policy.inputs import VmSettings
from vhost_balloon.policy.memory_file import MemoryFile
from vhost_balloon.policy.settings import Mode, PolicySettings

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


async def test_files_that_are_missing_later(autojump_clock: MockClock, log_lines: LogLines) -> None:
    host = FakeHost(available=SHORT)
    host.missing = "no meminfo: do this"
    policy = host.policy(Mode.OFF)
    async with running(policy):
        with pytest.raises(CommandError, match="do this"):
            await policy.set_mode(Mode.ON)
        assert policy.report().mode is Mode.OFF
        policy.change(PolicySettings(mode=Mode.ON))
        await ticks(10)
        assert not policy.report().readable
        assert len(log_lines.lines) == 1
        host.missing = ""
        await trio.sleep(3 * TICK)
        assert policy.report().readable
        assert host.told


async def test_a_host_whose_files_hang_decides_nothing(
    autojump_clock: MockClock, log_lines: LogLines
) -> None:
    host = FakeHost(available=SHORT)
    host.hangs = True
    policy = host.policy(Mode.OFF)
    said = "the host's memory cannot be read: its file system hangs"
    async with running(policy):
        for order in (partial(policy.set_mode, Mode.ON), policy.release_all):
            with pytest.raises(CommandError, match=f"^{said}$"):
                await order()
        policy.change(PolicySettings(mode=Mode.ON, reserve=GIB))
        await ticks(3)
        assert policy.report().problems == [f"the policy decides nothing: {said}"]
        host.hangs = False
        await trio.sleep(2 * TICK)
        targets = [vm.target for vm in host.guests.values()]
        assert max(targets) < SIZE
        host.hangs = True
        await trio.sleep(3 * TICK)
        assert [vm.target for vm in host.guests.values()] == targets
        assert not policy.report().readable
    assert len(log_lines.having("warning: ", "its file system hangs")) == 2


async def test_another_cgroup_is_read_at_once(autojump_clock: MockClock) -> None:
    host = FakeHost()
    opened: list[str | None] = []
    real = host.open

    def open_host(settings: PolicySettings) -> FakeFiles:
        opened.append(settings.cgroup)
        return real(settings)

    host.open = open_host  # type: ignore[method-assign]
    policy = host.policy()
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
            "the VMs' floors add up to more than the host's 16 GiB: the policy cannot keep "
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


async def test_a_folder_that_comes_during_a_look_is_locked_before_its_vms_are_ordered(
    autojump_clock: MockClock,
) -> None:
    host = FakeHost(available=SHORT)
    host.is_partial, host.takes = True, 0.5
    policy = host.policy()
    async with running(policy):
        await trio.sleep(0.2)
        assert host.looks
        host.holder = "process 5 decides on this host"
        await trio.sleep(1)
        assert policy.report().problems == [host.holder]
        assert host.in_use() == {"files"}
        host.holder = None
        await trio.sleep(2 * TICK)
        assert host.told


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

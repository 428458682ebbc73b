"""Memory that goes back to all VMs by order of the operator (policy-release --all)."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.support.fakes.policed_vms import (
    PLENTY,
    SHORT,
    SIZE,
    FakeHost,
    FakeVm,
    running,
    ticks,
)
from tests.support.helpers import GIB
from vhost_balloon.errors import CommandError
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.policy.constants import TICK
from vhost_balloon.policy.inputs import HostFigures
from vhost_balloon.policy.memory_file import MemoryFile
from vhost_balloon.policy.past import FORGET
from vhost_balloon.policy.release import Released
from vhost_balloon.policy.settings import Mode, PolicySettings

RELEASING = ["memory goes back to all VMs by order; policy-mode ends this"]


async def test_vms_that_do_not_answer_at_the_moment_get_theirs_too(
    autojump_clock: MockClock,
) -> None:
    host = FakeHost(available=PLENTY)
    for vm in host.guests.values():
        vm.target = 3 * GIB
    policy = host.policy(Mode.OFF)
    async with running(policy):
        assert await policy.release_all() == Released(["web1", "web2"])
        await ticks(1)
        for vm in host.guests.values():
            vm.answers = False
        await trio.sleep(2 * TICK)
        assert policy.report().unanswered == {"web1": "no answer", "web2": "no answer"}
        assert policy.report().problems == RELEASING
        host.guests["web1"].answers = True
        await trio.sleep(100)
        assert host.guests["web1"].target == SIZE
        host.guests["web2"].answers = True
        await trio.sleep(100)
        assert host.guests["web2"].target == SIZE
        assert policy.report().problems == []


async def test_a_vm_that_never_answers_again_is_waited_for_only_so_long(
    autojump_clock: MockClock,
) -> None:
    host = FakeHost(available=PLENTY)
    host.guests["web1"].target = 3 * GIB
    policy = host.policy(Mode.OFF)
    async with running(policy):
        await policy.release_all()
        await ticks(1)
        host.guests["web1"].answers = False
        await trio.sleep(FORGET - 2 * TICK)
        assert RELEASING[0] in policy.report().problems
        await trio.sleep(4 * TICK)
        assert policy.report().problems == []
        assert host.in_use() == set()


async def test_many_vms_get_theirs_one_after_the_other(autojump_clock: MockClock) -> None:
    """5 % of the surplus are 50 MiB a tick: of 40 VMs that shared them, none would get a step."""
    host = FakeHost(40, available=2 * GIB, total=64 * GIB)
    for number, vm in enumerate(host.guests.values()):
        vm.target = SIZE - (number + 1) * (GIB // 32)
    policy = host.policy(Mode.OFF, settings=PolicySettings(reserve=GIB))
    async with running(policy):
        assert len((await policy.release_all()).left) == 40
        await trio.sleep(30 * TICK)
        lacking = [SIZE - vm.target for vm in host.guests.values()]
        assert max(lacking) < GIB, "those that lack most come first"
        await trio.sleep(2000 * TICK)
        assert all(vm.target == SIZE for vm in host.guests.values())


async def test_vms_that_do_not_get_the_order_are_named(autojump_clock: MockClock) -> None:
    host = FakeHost(3, available=PLENTY)
    for vm in host.guests.values():
        vm.target = 3 * GIB
    host.guests["web1"].answers = False
    host.guests["web2"].held, host.guests["web2"].refuses = True, "busy"
    policy = host.policy(Mode.OFF)
    async with running(policy):
        failed = {"web1": "no answer", "web2": "Device 'web2' not found"}
        assert await policy.release_all() == Released(["web3"], failed)


async def test_a_hub_that_just_started_waits_for_vms_that_do_not_answer(
    autojump_clock: MockClock,
) -> None:
    host = FakeHost(1, available=PLENTY)
    vm = host.guests["web1"]
    vm.target, vm.answers = 3 * GIB, False
    policy = host.policy(Mode.OFF)
    async with running(policy):
        assert await policy.release_all() == Released([], {"web1": "no answer"})
        await trio.sleep(FORGET - 2 * TICK)
        vm.answers = True
        await trio.sleep(100)
        assert vm.target == SIZE
        assert policy.report().problems == []
        vm.answers = False
        await trio.sleep(2 * FORGET)
        vm.target = 3 * GIB
        await policy.release_all()
        await trio.sleep(FORGET + 2 * TICK)
        assert host.in_use() == set(), "not for ever"


async def test_a_look_from_before_the_order_does_not_end_it(autojump_clock: MockClock) -> None:
    """It found the VM held."""
    host = FakeHost(1, available=PLENTY)
    vm = host.guests["web1"]
    vm.target, vm.held = 3 * GIB, True
    policy = host.policy(Mode.DRY_RUN)
    read = policy._host.read

    async def order_first(settings: PolicySettings, now: float) -> HostFigures:
        policy._host.read = read  # type: ignore[method-assign]
        await trio.sleep(0.1)
        await policy.release_all()
        return await read(settings, now)

    policy._host.read = order_first  # type: ignore[method-assign]
    async with running(policy):
        await trio.sleep(100)
    assert vm.target == SIZE


async def test_another_order_closes_nothing_under_it(autojump_clock: MockClock) -> None:
    host = FakeHost(1, available=PLENTY)
    vm = host.guests["web1"]
    vm.target, vm.answers, host.takes = 3 * GIB, False, 3 * TICK
    policy = host.policy(Mode.OFF)
    async with running(policy):
        await trio.sleep(TICK)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(policy.release_all)
            await trio.sleep(TICK)
            await policy.release("web1")
            await trio.sleep(2 * TICK)
            assert host.in_use() == {"files", "connections", "lock"}


async def test_no_vm_known_is_not_all_vms_done(autojump_clock: MockClock) -> None:
    host = FakeHost(0, available=PLENTY)
    host.problems = ["/run/vms cannot be read: Input/output error"]
    policy = host.policy(Mode.OFF)
    async with running(policy):
        with pytest.raises(CommandError, match="/run/vms cannot be read"):
            await policy.release_all()
        await trio.sleep(2 * TICK)
        assert host.in_use() == set()


@pytest.mark.parametrize("mode", [Mode.OFF, Mode.DRY_RUN])
async def test_it_goes_on_after_a_restart(
    autojump_clock: MockClock, tmp_path: Path, mode: Mode
) -> None:
    host = FakeHost(1, available=SHORT)
    vm = host.guests["web1"]
    vm.target = 3 * GIB
    policy = host.policy(mode, MemoryFile(tmp_path))
    async with running(policy):
        assert await policy.release_all() == Released(["web1"])
    host.available = PLENTY
    policy = host.policy(mode, MemoryFile(tmp_path))
    async with running(policy):
        await trio.sleep(TICK)
        assert RELEASING[0] in policy.report().problems
        await trio.sleep(100)
    assert vm.target == SIZE
    vm.target = 3 * GIB
    async with running(host.policy(mode, MemoryFile(tmp_path))):
        await trio.sleep(100)
    assert vm.target == 3 * GIB, "it has ended"


async def test_an_order_that_was_taken_back_does_not_go_on(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    host = FakeHost(1, available=SHORT)
    vm = host.guests["web1"]
    vm.target = 3 * GIB
    policy = host.policy(Mode.OFF, MemoryFile(tmp_path))
    async with running(policy):
        await policy.release_all()
        await policy.set_mode(Mode.OFF)
    host.available = PLENTY
    async with running(host.policy(Mode.OFF, MemoryFile(tmp_path))):
        await trio.sleep(100)
    assert vm.target == 3 * GIB


async def test_a_folder_that_cannot_be_read_is_an_error_and_its_vms_are_waited_for(
    autojump_clock: MockClock,
) -> None:
    host = FakeHost(2, available=PLENTY)
    web2 = host.guests.pop("web2")
    web2.target = 3 * GIB
    host.failure = "/run/b cannot be read: Input/output error"
    policy = host.policy(Mode.OFF)
    async with running(policy):
        with pytest.raises(CommandError, match="known VMs only: /run/b cannot be read"):
            await policy.release_all()
        await trio.sleep(10 * TICK)
        host.guests["web2"], host.failure = web2, ""
        await trio.sleep(100)
        assert web2.target == SIZE
        assert policy.report().problems == []


async def test_the_later_of_two_orders_holds(autojump_clock: MockClock) -> None:
    host = FakeHost(1, available=PLENTY)
    host.takes = 1.0
    vm = host.guests["web1"]
    vm.target = 3 * GIB
    policy = host.policy(Mode.OFF)
    async with running(policy), trio.open_nursery() as nursery:
        nursery.start_soon(policy.release_all)
        await trio.sleep(0.5)
        await policy.set_mode(Mode.OFF)
        await trio.sleep(100)
        assert vm.target == 3 * GIB


async def test_a_withdrawal_that_is_not_ordered_holds_no_vm(autojump_clock: MockClock) -> None:
    """While memory goes back by order, and the policy itself only makes a dry run."""
    host = FakeHost(1, available=SHORT)
    host.guests["web1"] = FakeVm(target=2 * GIB, least=3 * GIB)
    policy = host.policy(Mode.DRY_RUN)
    async with running(policy):
        await policy.release_all()
        await trio.sleep(10 * TICK)
        assert policy.report().vms["web1"].decision.reason is Reason.NOT_NEEDED

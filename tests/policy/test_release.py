"""Memory that goes back to all VMs by order of the operator (policy-release --all)."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.support.fakes.policed_vms import PLENTY, SIZE, FakeHost, running, ticks
from tests.support.helpers import GIB
from vhost_balloon.policy.constants import TICK
from vhost_balloon.policy.past import FORGET
from vhost_balloon.policy.settings import Mode, PolicySettings

RELEASING = ["memory goes back to all VMs by order (policy-release)"]


async def test_vms_that_do_not_answer_at_the_moment_get_theirs_too(
    autojump_clock: MockClock,
) -> None:
    host = FakeHost(available=PLENTY)
    for vm in host.guests.values():
        vm.target = 3 * GIB
    policy = host.policy(Mode.OFF)
    async with running(policy):
        assert await policy.release_all() == ["web1", "web2"]
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
        assert len(await policy.release_all()) == 40
        await trio.sleep(30 * TICK)
        lacking = [SIZE - vm.target for vm in host.guests.values()]
        assert max(lacking) < GIB, "those that lack most come first"
        await trio.sleep(2000 * TICK)
        assert all(vm.target == SIZE for vm in host.guests.values())

"""What holds for the policy's orders whatever happens to the host and its VMs, in any order."""

from __future__ import annotations

from collections.abc import Mapping

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fakes.policed_vms import SIZE, FakeHost, FakeVm, running
from tests.support.helpers import GIB, MIB
from vhost_balloon.policy.constants import STALE, TICK
from vhost_balloon.policy.inputs import VmSettings
from vhost_balloon.policy.runner import Policy
from vhost_balloon.policy.settings import Mode, PolicySettings

FLOOR, CEILING = 512 * MIB, SIZE - 256 * MIB
RESERVE = GIB
SETTINGS = PolicySettings(
    mode=Mode.ON, reserve=RESERVE, defaults=VmSettings(floor=FLOOR, ceiling=CEILING)
)
MODES = [Mode.DRY_RUN, Mode.ON, Mode.OFF]


class WatchedHost(FakeHost):
    """Checks every order against what its VM really is at that moment."""

    mode = Mode.ON
    is_releasing = False

    async def order(self, targets: Mapping[str, int]) -> Mapping[str, str]:
        before = {name: vm.target for name, vm in self.guests.items()}
        refused = await super().order(targets)
        assert self.mode is Mode.ON or self.is_releasing
        lowered = 0
        for name in targets.keys() - refused.keys():
            vm, target = self.guests[name], targets[name]
            assert FLOOR <= target <= CEILING
            assert not vm.held
            if target < min(before[name], vm.actual):
                assert vm.gives_statistics
                assert vm.sampled is None, "never lowered by an old sample"
                assert self.available < RESERVE
                lowered += vm.actual - target
        assert lowered <= max(RESERVE - self.available, 0)
        return refused


EVENTS = st.one_of(
    st.tuples(st.just("available"), st.integers(0, 4 * GIB)),
    st.tuples(st.just("available"), st.integers(0, RESERVE)),
    st.tuples(st.just("unreadable"), st.sampled_from(["", "meminfo is gone"])),
    st.tuples(st.just("mode"), st.sampled_from(MODES)),
    st.tuples(st.just("release"), st.none()),
    st.tuples(st.just("demand"), st.integers(0, SIZE)),
    st.tuples(st.just("least"), st.integers(0, SIZE)),
    st.tuples(st.just("claims"), st.none() | st.integers(0, SIZE)),
    st.tuples(st.just("held"), st.booleans()),
    st.tuples(st.just("answers"), st.booleans()),
    st.tuples(st.just("gives_statistics"), st.booleans()),
    st.tuples(st.just("refuses"), st.sampled_from(["", "no"])),
    st.tuples(st.just("sampled"), st.booleans()),
    st.tuples(st.just("anew"), st.integers(1, 9)),
    st.tuples(st.just("manual"), st.integers(FLOOR, CEILING)),
    st.tuples(st.just("jump"), st.sampled_from([-1e6, -100.0, 100.0, 1e6])),
)
STEPS = st.lists(
    st.tuples(st.integers(1, 3), st.lists(EVENTS, max_size=3), st.integers(1, 8)), min_size=5
)


async def happen(host: WatchedHost, policy: Policy, name: str, kind: str, value: object) -> None:
    vm = host.guests[name]
    if kind in ("available", "unreadable"):
        setattr(host, kind, value)
    elif kind == "mode":
        assert isinstance(value, Mode)
        await policy.set_mode(value)
        host.mode, host.is_releasing = value, False
    elif kind == "release":
        host.is_releasing = True
        await policy.release_all()
    elif kind == "sampled":
        vm.sampled = host.clock() - 2 * STALE if value else None
    elif kind == "anew":
        assert isinstance(value, int)
        host.guests[name] = FakeVm(front_end=value, target=CEILING)
    elif kind == "manual":
        assert isinstance(value, int)
        vm.held, vm.target = True, value
    elif kind == "jump":
        assert isinstance(value, float)
        host.clock_offset += value
        for each in host.guests.values():  # no sample is from the future
            each.sampled = None if each.sampled is None else each.sampled + value
    else:
        setattr(vm, kind, value)


@given(STEPS)
@settings(deadline=None, max_examples=100)
def test_the_rules_that_are_never_broken(
    steps: list[tuple[int, list[tuple[str, object]], int]],
) -> None:
    async def run() -> None:
        host = WatchedHost()
        host.guests = {f"web{n}": FakeVm(target=CEILING) for n in (1, 2, 3)}
        policy = host.policy(settings=SETTINGS)
        async with running(policy):
            for number, events, wait in steps:
                for kind, value in events:
                    await happen(host, policy, f"web{number}", kind, value)
                await trio.sleep(wait * TICK / 2)
                report = policy.report()
                assert report.vms.keys() <= host.guests.keys()
                assert all(vm.reversals >= 0 for vm in report.vms.values())

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))

"""Our rule, fed as the daemon's runner feeds it."""

from __future__ import annotations

from collections.abc import Sequence

from tests.policy.rule import HostView, Orders, VmView
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.policy.constants import TICK
from vhost_balloon.policy.decide import Outcome, decide, judge
from vhost_balloon.policy.inputs import HostFigures, Sample, VmFigures, VmSettings, default_reserve
from vhost_balloon.policy.memory import Memory

MIB = 1 << 20


class Ours:
    """vhost_balloon.policy.decide. outcome: of the last tick."""

    name = "ours"
    period = int(TICK)

    def __init__(self) -> None:
        self._memory: Memory = {}
        self.outcome: Outcome | None = None

    def tick(self, now: int, host: HostView, vms: Sequence[VmView]) -> Orders:
        total = int(host.total * MIB)
        figures = HostFigures(int(host.available * MIB), total, host.some)
        state = judge(figures, default_reserve(total))
        self.outcome = decide(now, state, {vm.name: _figures(vm) for vm in vms}, self._memory)
        self._memory = self.outcome.memory
        decisions = self.outcome.decisions.items()
        targets = {
            name: decision.target / MIB
            for name, decision in decisions
            if decision.target is not None
        }
        return targets, {name for name, decision in decisions if decision.poll}


def _figures(vm: VmView) -> VmFigures:
    obstacle = Reason.PINNED if vm.pinned else None
    if not vm.has_driver:
        obstacle = Reason.NO_DRIVER
    return VmFigures(
        guest=vm.name,
        size=int(vm.size * MIB),
        actual=int(vm.actual * MIB),
        target=int(vm.target * MIB),
        resident=int(vm.resident * MIB),
        sample=_sample(vm),
        settings=VmSettings(weight=vm.weight),
        obstacle=obstacle,
    )


def _sample(vm: VmView) -> Sample | None:
    sample = vm.sample
    if sample is None:
        return None
    return Sample(
        float(sample.taken),
        int(sample.actual * MIB),
        int(sample.available * MIB),
        int(sample.faults),
    )

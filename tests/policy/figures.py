"""Hosts and VMs for tests of the rule."""

from __future__ import annotations

from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.policy.decide import Decision, HostState, decide, judge
from vhost_balloon.policy.inputs import HostFigures, Sample, VmFigures, VmSettings
from vhost_balloon.policy.memory import Memory, VmMemory

MIB = 1 << 20
GIB = 1 << 30
RESERVE = 2 * GIB
WELL, SHORT, PLENTY = (
    judge(HostFigures(available, 64 * GIB), RESERVE) for available in (3 * GIB, GIB, 8 * GIB)
)


def vm(
    *, actual: int = 4 * GIB, target: int | None = None, available: int = 2 * GIB, taken: float = 0,
    faults: int | None = 0, resident: int = 4 * GIB, obstacle: Reason | None = None,
    settings: VmSettings | None = None,
) -> VmFigures:  # fmt: skip
    """One of 4 GiB."""
    sample = Sample(taken, actual, available, faults)
    target = actual if target is None else target
    return VmFigures("qemu", 4 * GIB, actual, target, resident, sample,
                     settings or VmSettings(), obstacle)  # fmt: skip


def one(
    figures: VmFigures, host: HostState = WELL, *, now: float = 0.0, memory: Memory | None = None
) -> tuple[Decision, VmMemory]:
    outcome = decide(now, host, {"vm": figures}, memory or {})
    return outcome.decisions["vm"], outcome.memory["vm"]


def after(figures: VmFigures, host: HostState = WELL, now: float = 0.0) -> dict[str, VmMemory]:
    """The memory after a tick at which this was seen."""
    return {"vm": one(figures, host, now=now)[1]}

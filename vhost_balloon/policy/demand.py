"""Follows a VM from tick to tick: its demand, and whether it needs more than it has. Pure."""

from __future__ import annotations

from dataclasses import fields
from operator import attrgetter

from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.policy.constants import DISTRESS, FADE, FAULTS, PAGE_SIZE, STEP, TAKEN_BACK
from vhost_balloon.policy.inputs import Sample, VmFigures
from vhost_balloon.policy.memory import VmMemory

_FIELDS = attrgetter(*(field.name for field in fields(VmMemory)))
"""copy.copy() takes five times as long, which counts with hundreds of VMs."""


def remembered(vm: VmFigures, memory: VmMemory | None) -> VmMemory:
    """A copy of its memory, or a new one for a VM, a front end or a driver that was not there
    before."""
    if memory is None or memory.guest != vm.guest or vm.obstacle is Reason.NO_DRIVER:
        return VmMemory(vm.guest)
    return VmMemory(*_FIELDS(memory))


def follow(vm: VmFigures, k: float, memory: VmMemory) -> bool:
    """Take in the VM's sample; return whether it is a new one. k: see decide.py."""
    sample = vm.sample
    if sample is None or (memory.sampled is not None and sample.taken <= memory.sampled):
        if memory.unanswered is not None:
            memory.unanswered += 1
        return False
    memory.unanswered = 0
    memory.demand = min(max(sample.actual - sample.available, 0), vm.size)
    if memory.sampled is None:
        memory.peak, seconds = memory.demand, 0.0
    else:
        seconds = sample.taken - memory.sampled
        faded = (memory.peak - memory.demand) * 0.5 ** (seconds / FADE)
        memory.peak = memory.demand + max(int(faded), 0)
    memory.distress = (
        sample.available < k * vm.slack * DISTRESS
        or _fault_rate(sample, memory.faults, seconds) >= FAULTS
    )
    memory.sampled, memory.faults, memory.current = sample.taken, sample.faults, True
    return True


def _fault_rate(sample: Sample, before: int | None, seconds: float) -> float:
    """Major faults a second since the last sample; 0 where a count is missing or began anew."""
    if sample.faults is None or before is None or seconds <= 0:
        return 0.0
    return max(sample.faults - before, 0) / seconds


def took_back(vm: VmFigures, memory: VmMemory) -> bool:
    """Whether the guest took memory out of its balloon that nobody gave it (deflate on OOM).

    Memory that is plugged or unplugged moves `actual` as well.
    """
    same = vm.size == memory.size and _has_its_target(vm, memory)
    return same and vm.actual >= max(memory.actual, vm.target) + TAKEN_BACK


def ignored_its_order(vm: VmFigures, memory: VmMemory) -> bool:
    """Whether its daemon accepted an order and has another target even so. An operator's order
    changes the target as well, and is a hold."""
    same = vm.obstacle is None and vm.size == memory.size
    return same and not _has_its_target(vm, memory)


def _has_its_target(vm: VmFigures, memory: VmMemory) -> bool:
    return abs(vm.target - memory.target) < PAGE_SIZE


def follow_actual(vm: VmFigures, now: float, memory: VmMemory) -> None:
    """Note the VM's figures, and since when it has come no STEP closer to a lower target."""
    memory.size, memory.actual, memory.target = vm.size, vm.actual, vm.target
    if vm.actual <= vm.target + STEP:
        memory.moving_since = None
    elif memory.moving_since is None or vm.actual <= memory.moving_from - STEP:
        memory.moving_since, memory.moving_from = now, vm.actual

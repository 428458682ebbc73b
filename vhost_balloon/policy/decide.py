"""The rule. Pure: the same input gives the same decisions.

One number for the whole host, k = available / reserve between 0 and 1, says how much of the room
that guests would like they may keep. A VM keeps its demand and k times its room: what it used
lately and does not now, and slack.

- Below the reserve, all VMs are cut towards demand plus the same share of their wish.
- A VM that shows that it needs more is given more at once, however short the host is.
- Above twice the reserve, memory goes back slowly.
- In between, nothing moves but relief. Without that band, the rule would hunt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.policy.constants import (
    GIVE,
    HOLD,
    PRESSURE,
    SILENT,
    SILENT_SLACKS,
    SILENT_TICKS,
    STALE,
    STEP,
    STUCK,
)
from vhost_balloon.policy.demand import (
    follow,
    follow_actual,
    ignored_its_order,
    remembered,
    took_back,
)
from vhost_balloon.policy.inputs import HostFigures, VmFigures
from vhost_balloon.policy.memory import Memory, VmMemory


@dataclass(frozen=True, slots=True)
class HostState:
    """The host as the rule takes it. available: after pressure was considered."""

    available: int
    total: int
    reserve: int
    some: float
    k: float
    short: bool
    plenty: bool
    spare: int = 0
    """All that VMs may give."""


@dataclass(slots=True)
class Decision:
    """One VM's reason, and the numbers behind it.

    target: the order, None for none. keep: what the rule leaves it; spare: what it has beyond that.
    age: of its sample, None without one. poll: ask the guest for statistics at each tick. held: it
    does not follow orders at present.
    """

    reason: Reason
    target: int | None = None
    detail: str = ""
    demand: int = 0
    peak: int = 0
    slack: int = 0
    keep: int = 0
    spare: int = 0
    age: float | None = None
    distress: bool = False
    poll: bool = False
    held: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a tick leads to. memory: for the next one."""

    host: HostState
    decisions: Mapping[str, Decision]
    memory: Memory


def judge(host: HostFigures, reserve: int) -> HostState:
    """How the host is. reserve: bytes that are to stay available, above 0."""
    available = host.available
    plenty = available > 2 * reserve
    if host.some >= PRESSURE and not plenty:  # MemAvailable promises too much
        available = min(available, int(reserve * (1 - host.some)))
    k = min(1.0, max(0.0, available / reserve))
    short = available < reserve
    return HostState(available, host.total, reserve, host.some, k, short, plenty)


def decide(now: float, host: HostState, vms: Mapping[str, VmFigures], memory: Memory) -> Outcome:
    """Decide about all VMs, every TICK. VMs that are gone are forgotten."""
    after = {name: remembered(vm, memory.get(name)) for name, vm in vms.items()}
    told = {name: _consider(now, host, vm, after[name]) for name, vm in vms.items()}
    may_give = [name for name, decision in told.items() if decision.reason is Reason.NOT_NEEDED]
    spare = sum(told[name].spare for name in may_give if told[name].spare >= STEP)
    host = replace(host, spare=spare)
    if host.short:
        _reclaim(host, {name: vms[name] for name in may_give}, told)
    elif host.plenty:
        share_out(host.available - 2 * host.reserve, vms, told)
    for name, decision in told.items():
        if decision.target is not None:
            after[name].target = decision.target
    return Outcome(host, told, after)


def _consider(now: float, host: HostState, vm: VmFigures, memory: VmMemory) -> Decision:
    """What to tell a VM on its own account: give back, or leave alone. Reason.NOT_NEEDED stands for
    a VM that may give its spare."""
    is_new = follow(vm, host.k, memory)
    taken_back = took_back(vm, memory)
    memory.distress = memory.distress or taken_back
    if ignored_its_order(vm, memory):
        memory.held_until = now + HOLD
    follow_actual(vm, now, memory)
    decision = _described(now, host, vm, memory)
    decision.poll = vm.may_be_given and (vm.squeezed or host.short)
    unanswered = memory.unanswered or 0
    memory.unanswered = unanswered if decision.poll else None
    silent = decision.age is None or unanswered >= SILENT_TICKS
    needs_more = vm.may_be_given and vm.squeezed and (memory.distress or silent)
    urgent = is_new or taken_back or silent
    if needs_more and _give_back(host, vm, decision, unanswered, urgent=urgent):
        return decision
    if vm.may_be_given and not memory.distress and _is_stuck(now, vm, memory):
        memory.held_until, memory.moving_since = now + HOLD, None
        decision.reason, decision.target = Reason.STUCK, _within_reach(vm)
    elif vm.obstacle is not None:
        decision.reason, decision.detail = vm.obstacle, vm.detail
    else:
        patience = SILENT if vm.squeezed else STALE
        decision.reason = _standing(vm, decision, memory, patience)
    return decision


def _is_stuck(now: float, vm: VmFigures, memory: VmMemory) -> bool:
    """Whether the guest does not reach its target. The ceiling is the operator's own."""
    since = memory.moving_since
    return since is not None and now - since > STUCK and vm.target != vm.ceiling


def _within_reach(vm: VmFigures) -> int:
    """A target for a guest that does not reach its own: no more than the operator wants for it,
    unless it has more already."""
    most = vm.actual if vm.target > vm.ceiling else vm.ceiling
    return max(vm.floor, min(vm.actual, most))


def _described(now: float, host: HostState, vm: VmFigures, memory: VmMemory) -> Decision:
    """The numbers of a VM."""
    slack = vm.slack
    room = max(memory.peak - memory.demand, 0) + slack
    keep = max(vm.floor, int(memory.demand + host.k * room))
    return Decision(
        Reason.NOT_NEEDED,
        demand=memory.demand,
        peak=memory.peak,
        slack=slack,
        keep=keep,
        spare=max(occupied(host, vm) - keep, 0),
        age=None if vm.sample is None else max(now - vm.sample.taken, 0.0),
        distress=memory.distress,
        held=memory.held_until is not None and now < memory.held_until,
    )


def occupied(host: HostState, vm: VmFigures) -> int:
    """Bytes that the VM could give at most: no more than the host has in use, whatever its daemon
    says."""
    return max(min(vm.actual, vm.resident, host.total - host.available), 0)


def _give_back(
    host: HostState, vm: VmFigures, decision: Decision, unanswered: int, *, urgent: bool
) -> bool:
    """Relief for a squeezed VM, never rationed. False if it has what it is to be given.

    unanswered: see VmMemory. urgent: there is a new reason since the last tick.
    """
    if decision.age is None:  # nothing is known of it
        reason, target = Reason.SILENT, vm.ceiling
    elif not decision.distress:
        slacks = min(unanswered / SILENT_TICKS, SILENT_SLACKS)
        reason, target = Reason.SILENT, decision.peak + int(decision.slack * slacks)
    elif not host.short:
        reason, target = Reason.RELIEF, vm.ceiling
    elif urgent:
        reason, target = Reason.RELIEF, vm.actual + decision.slack
    else:
        return False
    target = min(vm.ceiling, max(vm.floor, target))
    if target <= vm.target:
        return False
    decision.reason, decision.target = reason, target
    return True


def _standing(vm: VmFigures, decision: Decision, memory: VmMemory, patience: float) -> Reason:
    """Why a VM is left alone on its own account; NOT_NEEDED if it may give. patience: the age to
    which its sample is believed."""
    if decision.age is None:
        return Reason.NO_STATISTICS
    if not memory.current or decision.age > patience:
        return Reason.STALE
    if decision.distress:
        return Reason.DISTRESS
    if vm.actual > vm.target + STEP:
        return Reason.MOVING
    if decision.held:
        return Reason.HELD
    return Reason.NOT_NEEDED if decision.spare > 0 else Reason.NOTHING_TO_SPARE


def _reclaim(host: HostState, vms: Mapping[str, VmFigures], told: Mapping[str, Decision]) -> None:
    """Take what is missing from VMs that may give, in proportion to what each can spare. Writes
    their decisions.

    Where shares would be below a STEP, those that can spare least wait, and the others are asked
    for more: if all shared in it, none would give anything.
    """
    missing = host.reserve - host.available
    for name in vms:
        told[name].reason = Reason.TOO_SMALL
    givers = [name for name in vms if told[name].spare >= STEP]
    givers.sort(key=lambda name: -told[name].spare)
    del givers[missing // STEP :]
    spare = sum(told[name].spare for name in givers)
    while givers and missing * told[givers[-1]].spare < STEP * spare:
        spare -= told[givers.pop()].spare
    for name in givers:
        vm, decision = vms[name], told[name]
        take = min(decision.spare, missing * decision.spare // spare)
        target = occupied(host, vm) - take
        if target <= vm.target - STEP:
            decision.reason, decision.target = Reason.RECLAIM, target


def share_out(surplus: int, vms: Mapping[str, VmFigures], told: Mapping[str, Decision]) -> None:
    """Give squeezed VMs that have no order a part of the surplus (> 0), by weight. Writes their
    decisions.

    Those that lack most come first, as many as can get a STEP each: of many that shared, none
    would get one. Those that do not follow orders come last.
    """
    waiting = [
        name
        for name, decision in told.items()
        if decision.target is None and vms[name].squeezed and vms[name].may_be_given
    ]
    waiting.sort(key=lambda name: (told[name].held, vms[name].target - vms[name].ceiling))
    budget = int(surplus * GIVE)
    chosen = waiting[: budget // STEP]
    weights = sum(vms[name].settings.weight for name in chosen)
    for name in waiting:
        if told[name].reason in (Reason.NOT_NEEDED, Reason.NOTHING_TO_SPARE):
            told[name].reason = Reason.TOO_SMALL
    for name in chosen:
        vm, decision = vms[name], told[name]
        step = max(STEP, min(decision.slack, budget * vm.settings.weight // weights))
        target = min(vm.ceiling, max(vm.floor, vm.target + step))
        decision.reason, decision.detail, decision.target = Reason.REGROW, "", target

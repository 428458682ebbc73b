"""The automatic ballooning of Proxmox VE.

Source: pve-manager, PVE/AutoBalloon.pm (the rule) and PVE/Service/pvestatd.pm (its period, the
host's target and the largest change); qemu-server, PVE/QemuServer.pm (what it knows of a VM).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tests.policy.rule import HostView, Orders, VmView

USED: Final = 0.8
"""The share of the host that is to be in use."""
STEP: Final = 100 << 20
"""The most that a VM is changed in a period, in bytes."""
IGNORED: Final = 10 << 20
"""The host may be so far from its target, in bytes."""
ENOUGH_FREE: Final = 0.25
"""A guest with more free memory than this part of its minimum can give; any other is short."""
LEAST: Final = 0.25
"""The minimum, which the operator has to set for a VM, as a part of its size."""
SHARES: Final = 10
"""Shares for each unit of weight: 1000 are usual."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A VM, in bytes. size: now, and what it may at least and at most have. free: MemFree of its
    guest, 0 if the guest does not say."""

    size: int
    least: int
    most: int
    shares: int
    free: int

    @property
    def can_give(self) -> bool:
        return self.free > self.least * ENOUGH_FREE and self.size >= self.least


class Proxmox:
    """Moves the host towards its target, a step a VM and period."""

    name = "Proxmox"
    period = 10

    def tick(self, now: int, host: HostView, vms: Sequence[VmView]) -> Orders:
        used = host.total - max(host.available, 0.0)
        candidates = {vm.name: _candidate(vm) for vm in vms if vm.has_driver}
        sizes = balance(candidates, _bytes(USED * host.total - used), STEP)
        return {name: size / (1 << 20) for name, size in sizes.items()}, ()


def _candidate(vm: VmView) -> Candidate:
    free = vm.sample.free if vm.sample is not None else 0.0
    return Candidate(
        size=_bytes(vm.actual),
        least=_bytes(vm.size * LEAST),
        most=_bytes(vm.size),
        shares=vm.weight * SHARES,
        free=_bytes(free),
    )


def _bytes(mib: float) -> int:
    return int(mib * (1 << 20))


def balance(vms: Mapping[str, Candidate], goal: int, step: int) -> dict[str, int]:
    """The new sizes of the VMs that change, so that they change by goal bytes in all.

    Growth goes to VMs that are short, reduction to those that can give; to all if that moves
    nothing the right way.
    """
    sizes: dict[str, int] = {}
    if abs(goal) > IGNORED:
        first = [name for name, vm in vms.items() if vm.can_give == (goal < 0)]
        moved = _move(vms, first, goal, step, sizes)
        if moved * goal <= 0:
            _move(vms, list(vms), goal - moved, step, sizes)
    return {name: size for name, size in sizes.items() if size != vms[name].size}


def _move(
    vms: Mapping[str, Candidate], names: list[str], goal: int, step: int, sizes: dict[str, int]
) -> int:
    """Bring VMs closer to their shares of what they have together and the goal; return by how much
    they changed in all.

    A VM that already has its share leaves the division, and so does one that would grow while
    memory is wanted. Nothing keeps one from shrinking while memory is given.
    """
    moved = 0
    while moved != goal:
        has = {name: sizes.get(name, vms[name].size) for name in names}
        pool = sum(has[name] - vms[name].least for name in names) + goal - moved
        shares = sum(vms[name].shares for name in names)
        names = []
        for name in has:
            vm = vms[name]
            wanted = vm.least + int(pool / shares * vm.shares)
            wanted = max(vm.least, min(vm.most, wanted))
            if wanted != vm.size and (wanted < vm.size or goal > 0):
                names.append(name)
                sizes[name] = max(vm.size - step, min(vm.size + step, wanted))
        change = {name: sizes[name] - has[name] for name in names}
        moved += sum(change.values())
        if not any(change.values()):
            break
    return moved

"""What the policy remembers of each VM, and how that is written down. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from vhost_balloon.checked import Document, flag, number, reading, real


@dataclass(slots=True)
class VmMemory:
    """One VM's past. Sizes in bytes, times as in inputs.py; None for never.

    guest: whose it is. demand: what the guest used at its last sample; peak: what it used lately.
    distress: the sample shows that it needs more. sampled, faults: the last sample's time and count
    of major faults. current: the sample came while this process ran. unanswered: how often in a row
    the guest was asked for statistics and gave none; None if it is not asked. actual, target: at
    the last tick, the latter after its order. moving_since, moving_from: when the guest last came a
    STEP closer to its target, and its actual then. held_until: not to be lowered before.
    """

    guest: str
    demand: int = 0
    peak: int = 0
    distress: bool = False
    sampled: float | None = None
    faults: int | None = None
    current: bool = False
    unanswered: int | None = None
    size: int = 0
    actual: int = 0
    target: int = 0
    moving_since: float | None = None
    moving_from: int = 0
    held_until: float | None = None


Memory = Mapping[str, VmMemory]
"""By the VM's name."""


def to_document(memory: Memory) -> Document:
    """What from_document() reads."""
    return {name: asdict(vm) for name, vm in memory.items()}


def from_document(document: Any) -> dict[str, VmMemory]:
    """Continue from a document. A VM is not lowered before its next sample.

    Raises StateError.
    """
    with reading("the policy's memory"):
        return {name: _vm(of) for name, of in document.items()}


def _vm(document: Document) -> VmMemory:
    if document.keys() != {field.name for field in fields(VmMemory)}:
        raise ValueError("other members than expected")
    vm = VmMemory(**document)
    if type(vm.guest) is not str:
        raise ValueError("'guest' is not a string")
    flag(vm.distress)
    for count in (vm.demand, vm.peak, vm.size, vm.actual, vm.target, vm.moving_from):
        number(count)
    for optional in (vm.sampled, vm.moving_since, vm.held_until):
        if optional is not None:
            real(optional)
    if vm.faults is not None:
        number(vm.faults)
    vm.current, vm.unanswered = False, None
    return vm

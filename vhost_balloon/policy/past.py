"""What the policy keeps of each VM from tick to tick: its memory, and the count of its orders.

Pure. A VM whose daemon did not answer at a tick is not forgotten at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.policy.constants import HOLD
from vhost_balloon.policy.memory import Memory, VmMemory

FORGET: Final = HOLD
"""Seconds without an answer after which a VM is forgotten."""


@dataclass(frozen=True, slots=True)
class Order:
    """An order that a VM's daemon accepted. Bytes."""

    vm: str
    reason: Reason
    before: int
    target: int


@dataclass(slots=True)
class Tally:
    """A VM's orders by reason, and how many went against the direction of the one before."""

    decisions: Counter[Reason] = field(default_factory=Counter)
    reversals: int = 0
    _rose: bool | None = None

    def add(self, order: Order) -> None:
        rises = order.target > order.before
        self.decisions[order.reason] += 1
        self.reversals += self._rose is not None and self._rose is not rises
        self._rose = rises


class Past:
    def __init__(self) -> None:
        self.memory: dict[str, VmMemory] = {}
        self.tallies: dict[str, Tally] = {}
        self._seen: dict[str, float] = {}

    def restore(self, memory: Memory, now: float) -> None:
        self.memory = dict(memory)
        self._seen = dict.fromkeys(memory, now)

    def forget(self) -> None:
        """Start anew, but for the counts."""
        self.restore({}, 0.0)

    def follow(self, now: float, memory: Memory) -> None:
        """Take in the memory after a tick, of the VMs that answered."""
        self.memory |= memory
        self._seen |= dict.fromkeys(memory, now)
        for name in [name for name, seen in self._seen.items() if now - seen > FORGET]:
            del self._seen[name]
            del self.memory[name]
            self.tallies.pop(name, None)

    def count(self, orders: Iterable[Order]) -> None:
        for order in orders:
            self.tallies.setdefault(order.vm, Tally()).add(order)

    def held(self) -> Mapping[str, float]:
        """When each hold after an order that could not be carried out ends."""
        return {
            name: vm.held_until for name, vm in self.memory.items() if vm.held_until is not None
        }


def not_carried_out(after: VmMemory, before: VmMemory | None, target: int, reason: Reason) -> None:
    """Correct a VM's memory after a tick whose order it did not get. target: what it has."""
    after.target = target
    if reason is Reason.STUCK and before is not None:
        after.held_until, after.moving_since = before.held_until, before.moving_since

"""What a rule is told at a tick, and what it answers: the interface of ours and of its rivals.

Sizes are in MiB, times in whole seconds since the start of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class SampleView:
    """The guest's last statistics, as it tells them: a liar lies here.

    taken: when. actual: its memory outside the balloon then. available, free: MemAvailable and
    MemFree. total: MemTotal, which is actual less what the kernel keeps; here the same as actual.
    faults: its count of major faults. swapped_in, swapped_out: totals since its boot.
    """

    taken: int
    actual: float
    available: float
    free: float
    total: float
    faults: float
    swapped_in: float
    swapped_out: float


@dataclass(frozen=True, slots=True)
class VmView:
    """A VM at a tick.

    target: the last order. actual: guest memory outside the balloon, now. resident: what the host
    spends on it, now. sample: None before the first, and for a guest without statistics.
    stats_interval: seconds between samples of a guest that nobody asks. weight: 100 is usual.
    has_driver: its balloon driver runs; without it, an order does nothing yet. pinned: nothing that
    its balloon takes comes back to the host.
    """

    name: str
    size: float
    target: float
    actual: float
    resident: float
    sample: SampleView | None
    stats_interval: int
    weight: int
    has_driver: bool
    pinned: bool


@dataclass(frozen=True, slots=True)
class HostView:
    """The host at a tick.

    available: MemAvailable; 0 in a second in which memory ran out. total: its memory. some: share
    of the time since the rule's last tick in which tasks waited for memory. line: R0, the line of
    the measures.
    """

    available: float
    total: float
    some: float
    line: float


Orders = tuple[Mapping[str, float], Collection[str]]
"""New targets by the VM's name, and the VMs whose guests are asked for statistics each 2 s from now
on; all others answer each stats_interval."""


class Rule(Protocol):
    """One run's rule. Each run makes a new one."""

    @property
    def name(self) -> str:
        """The name in tables."""

    @property
    def period(self) -> int:
        """Seconds between two ticks; the first is at second 0."""

    def tick(self, now: int, host: HostView, vms: Sequence[VmView]) -> Orders:
        """Decide. vms: all that run, always in the same order."""


Future = Callable[[str, int], float]
"""A VM's true demand at a second, with the cache that it uses all the time; 0 before it
boots."""


class Clairvoyant(Rule, Protocol):
    """A rule that is told the future before its first tick."""

    def bind(self, future: Future) -> None:
        """Take the run's demands."""

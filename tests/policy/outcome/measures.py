"""What is measured in a run. README.md says what each measure means.

Sizes are in MiB until they are read from a Measures, which has GiB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.policy.worlds.guest import Guest
from tests.policy.worlds.host import Host

GIB = 1024.0
ORDER = 1.0
"""MiB by which a target must change to count as an order."""
JAIN_EVERY = 10
"""Seconds between two looks at fairness."""


@dataclass(frozen=True, slots=True)
class Measures:
    """One run. Times in s, sizes in GiB. episodes: the length of each relief; calm_reversals: those
    of VMs that are no saw guests; both kinds of reversals are for a VM and hour. missing, brought:
    GiB x s to twice R0 without a policy, and what the rule brought of it. jain: None if no VM was
    squeezed. host_stall: the integral of the host's pressure in `full`. liars: the distress of VMs
    that claim to have all available, which counts nowhere else."""

    scenario: str
    seed: int
    rule: str
    host_oom: float = 0.0
    below: float = 0.0
    distress: float = 0.0
    guest_oom: float = 0.0
    swap_in: float = 0.0
    reread: float = 0.0
    reversals: float = 0.0
    calm_reversals: float = 0.0
    moved: float = 0.0
    episodes: tuple[int, ...] = ()
    missing: float = 0.0
    brought: float = 0.0
    jain: float | None = None
    host_swap_in: float = 0.0
    host_stall: float = 0.0
    liars: float = 0.0


class Tally:
    """Counts for one VM during a run."""

    __slots__ = (
        "direction",
        "distress",
        "episodes",
        "guest",
        "last",
        "reversals",
        "starved",
    )

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.distress = self.starved = self.reversals = self.direction = 0
        self.last = -9
        self.episodes: list[int] = []

    def trouble(self, second: int) -> None:
        """A second of distress; it continues the one before, or begins an episode."""
        self.distress += 1
        self.starved += self.guest.starved
        if self.last == second - 1:
            self.episodes[-1] += 1
        else:
            self.episodes.append(1)
        self.last = second

    def order(self, target: float) -> None:
        """A new target; against the direction of the last one, it is a reversal."""
        change = target - self.guest.ordered
        if abs(change) < ORDER:
            return
        direction = 1 if change > 0 else -1
        self.reversals += direction == -self.direction
        self.direction = direction


@dataclass(slots=True)
class HostTally:
    """Counts for the host during a run. available: at each second."""

    line: float
    oom: int = 0
    below: int = 0
    stall: float = 0.0
    available: list[float] = field(default_factory=list)
    jain: list[float] = field(default_factory=list)

    def second(self, host: Host) -> None:
        self.oom += host.available < 0
        self.below += host.available < self.line
        self.stall += host.full
        self.available.append(host.available)

    def fairness(self, guests: Sequence[Guest]) -> None:
        """Jain's index of what squeezed VMs keep above their demand, by size and weight."""
        kept = [
            max(0.0, guest.actual - guest.anonymous - guest.swapped)
            / (guest.spec.size * guest.spec.weight)
            for guest in guests
            if guest.actual < guest.spec.size - ORDER
        ]
        squares = sum(share * share for share in kept)
        if len(kept) > 1 and squares > 0:
            self.jain.append(sum(kept) ** 2 / (len(kept) * squares))


def brought(
    line: float, without: Sequence[float], available: Sequence[float]
) -> tuple[float, float]:
    """What is missing to twice line without a policy, and the part of it that a rule brought, both
    in MiB x s."""
    missing = part = 0.0
    for plain, own in zip(without, available, strict=True):
        need = 2 * line - plain
        if need > 0:
            missing += need
            part += min(max(own - plain, 0.0), need)
    return missing, part


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values do not exceed; 0 without any."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0

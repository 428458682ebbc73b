"""What the policy is told of the host and of each VM. Pure.

Sizes are in bytes, times in seconds on one clock that runs on while the host is suspended.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.policy.constants import MIN_SLACK, PAGE_SIZE, RESERVE, RESERVE_SHARE, SLACK


@dataclass(frozen=True, slots=True)
class HostFigures:
    """The host at a tick.

    available: what could be allocated without swapping. total: its memory, or the limit of the
    cgroup that stands for it. some: share of the time since the last tick in which tasks waited
    for memory, 0 to 1.
    """

    available: int
    total: int
    some: float = 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The guest's last statistics.

    taken: when. actual: what the guest had outside its balloon then. available: what it could use
    without swapping. faults: its count of major faults, None if the guest does not say.
    """

    taken: float
    actual: int
    available: int
    faults: int | None = None


@dataclass(frozen=True, slots=True)
class VmSettings:
    """What the operator wants for a VM. floor, ceiling: None for the default."""

    on: bool = True
    weight: int = 100
    floor: int | None = None
    ceiling: int | None = None


@dataclass(frozen=True, slots=True)
class VmFigures:
    """A VM at a tick.

    guest: names its front end, so that another one is a new VM. size: guest memory. actual, target:
    what the guest has and is to have outside its balloon. resident: what the host spends on it.
    sample: None without statistics that say what is available. obstacle: why it cannot be moved,
    with detail (a pause reason); None if it can.
    """

    guest: str
    size: int
    actual: int
    target: int
    resident: int
    sample: Sample | None = None
    settings: VmSettings = field(default_factory=VmSettings)
    obstacle: Reason | None = None
    detail: str = ""

    @property
    def ceiling(self) -> int:
        """The most that it may have, in whole pages, as its daemon rounds targets up."""
        wanted = self.settings.ceiling
        return self.size if wanted is None else min(self.size, -(-wanted // PAGE_SIZE) * PAGE_SIZE)

    @property
    def floor(self) -> int:
        """The least that it may be ordered to keep."""
        wanted = self.settings.floor
        return min(self.ceiling, default_floor(self.size) if wanted is None else wanted)

    @property
    def slack(self) -> int:
        """What it may allocate while nobody looks."""
        plain = max(SLACK * self.size, MIN_SLACK)
        return int(min(self.size / 2, plain * self.settings.weight / 100))

    @property
    def squeezed(self) -> bool:
        return self.target < self.ceiling

    @property
    def may_be_given(self) -> bool:
        """Whether the policy may raise its target. Pinned memory keeps a VM from giving only."""
        return self.obstacle is None or self.obstacle is Reason.PINNED


def default_floor(size: int) -> int:
    """The memory that a guest of this size needs to stay alive.

    Source: Linux drivers/hv/hv_balloon.c, which keeps as much for itself.
    """
    for least, base, shift in _FLOORS:
        if size >= least << 20:
            return (base << 20) + (size >> shift)
    return (8 << 20) + (size >> 1)


_FLOORS = ((8192, 488, 5), (2048, 232, 4), (512, 104, 3), (128, 40, 2))
"""From so many MiB on: a base in MiB, and a power of two to divide the size by."""


def default_reserve(total: int) -> int:
    return int(RESERVE + RESERVE_SHARE * total)

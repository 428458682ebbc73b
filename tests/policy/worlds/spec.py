"""What a guest is, before a run. Sizes in MiB."""

from __future__ import annotations

from dataclasses import dataclass

from tests.policy.worlds.demand import Trace

NEVER = 1 << 30
"""A second that no run has."""


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """A guest, before a run. All that is random was drawn.

    demand: what it wants at each second; kind: the trace's name. cache: at the start; cache_limit:
    the most that it fills, by fill MiB/s (boot_fill in its first 12 s). hot, reread: below so much
    cache it reads again up to so many MiB/s; maps: major faults show that. swap: its size.
    dropped_share: of what the balloon takes from cache, the part for which anonymous memory is
    swapped out instead. reports: free pages, keeping kept of the free memory. delay: seconds until
    an order has an effect. boots, driver: the seconds from which it and its balloon driver run.
    silent: the second from which it sends no statistics. claims: what a liar says is available.
    least: it cannot be squeezed below.
    """

    name: str
    kind: str
    size: float
    demand: Trace
    cache: float
    cache_limit: float
    fill: float
    hot: float = 0.0
    reread: float = 0.0
    maps: bool = False
    swap: float = 0.0
    deflates_on_oom: bool = True
    inflate: float = 1024.0
    dropped_share: float = 0.0
    reports: bool = True
    kept: float = 0.1
    delay: int = 1
    phase: int = 0
    weight: int = 100
    boots: int = 0
    driver: int = 0
    boot_fill: float = 0.0
    silent: int = NEVER
    claims: float | None = None
    pinned: bool = False
    least: float = 0.0

"""The host's memory, one second at a time. Sizes in MiB."""

from __future__ import annotations

from dataclasses import dataclass

from tests.policy.worlds.demand import Trace

USABLE = 0.985
SWAPS_BELOW = 0.005
TIGHT_BELOW = 0.015
"""Shares of the memory: what is left by the kernel, where it swaps, where tasks start to wait."""
SWAP_OUT = 500.0
SWAP_IN = 100.0
"""MiB/s at most."""


@dataclass(frozen=True, slots=True)
class HostSpec:
    """A host, before a run. load: its own use at each second. pressure: besides what the model
    says, the share of each second in which tasks wait. hot: cache that it needs itself."""

    total: float
    swap: float
    load: Trace
    pressure: Trace
    hot: float = 0.0

    @property
    def line(self) -> float:
        """R0, the line of the measures."""
        return min(0.1 * self.total, 1024 + 0.02 * self.total)


class Host:
    """A host in a run. available: may be below 0, which is host OOM. some, full: of the last
    second, 0 to 1. total_swapped_in: since the start."""

    __slots__ = ("available", "full", "some", "spec", "swapped", "total_swapped_in")

    def __init__(self, spec: HostSpec) -> None:
        self.spec = spec
        self.available = spec.total
        self.swapped = 0.0
        self.total_swapped_in = 0.0
        self.some = self.full = 0.0

    def step(self, second: int, resident: float) -> None:
        """Live through a second. resident: what all guests occupy, in RAM and swap."""
        spec = self.spec
        total = spec.total
        came = min(0.02 * self.swapped, SWAP_IN)
        swapped = min(self.swapped - came, resident)
        available = USABLE * total - spec.load[second] - (resident - swapped)
        out = min(SWAP_OUT, SWAPS_BELOW * total - available, spec.swap - swapped)
        out = max(0.0, out)
        self.swapped = swapped + out
        self.total_swapped_in += came
        self.available = available = available + out
        some = (out + came) / 250 + spec.pressure[second]
        if available < TIGHT_BELOW * total:
            some += 0.3 * (1 - available / (TIGHT_BELOW * total))
        if spec.hot and available < spec.hot:
            some += 0.4 * (1 - available / spec.hot)
        self.some = some = min(1.0, some)
        self.full = some * some / 2

"""What a rule could reach that knows what every guest is about to need.

The future that it is told has to count the cache in use as well, or it takes that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

from tests.policy.rule import Future, HostView, Orders, VmView

AHEAD: Final = 20
"""Seconds that it knows of the future."""
ENOUGH: Final = 1.5
"""It keeps the host at this multiple of the line."""
KERNEL: Final = 0.03
LEAST_KERNEL: Final = 96.0
"""What a guest needs beside its demand: this share of its size, and no less than so many MiB, for
free pages and the last of the cache."""


class Oracle:
    """Gives guests what they will need before they do, and takes from the others only what the host
    is missing, each second."""

    name = "oracle"
    period = 1

    def __init__(self) -> None:
        self._future: Future = lambda name, second: 0.0
        self._demands: dict[str, deque[float]] = {}

    def bind(self, future: Future) -> None:
        self._future = future

    def tick(self, now: int, host: HostView, vms: Sequence[VmView]) -> Orders:
        working = [vm for vm in vms if vm.has_driver]
        keep = {vm.name: self._keep(vm, now) for vm in working}
        targets = {vm.name: keep[vm.name] for vm in working if vm.target < keep[vm.name]}
        has = {vm.name: min(vm.actual, vm.resident) for vm in working}
        left = {vm.name: min(has[vm.name], vm.target) for vm in working if not vm.pinned}
        coming = sum(has[name] - left[name] for name in left)
        missing = ENOUGH * host.line - host.available - coming
        spare = {name: max(0.0, left[name] - keep[name]) for name in left}
        part = min(1.0, missing / max(1.0, sum(spare.values())))
        if part > 0:
            targets |= {name: left[name] - part * spare[name] for name in spare if spare[name] > 0}
        return targets, ()

    def _keep(self, vm: VmView, now: int) -> float:
        """The least that a VM can do with for the next seconds."""
        ahead = self._demands.setdefault(vm.name, deque(maxlen=AHEAD + 1))
        if not ahead:
            ahead.extend(self._future(vm.name, now + later) for later in range(AHEAD))
        ahead.append(self._future(vm.name, now + AHEAD))
        return min(vm.size, max(ahead) + max(LEAST_KERNEL, KERNEL * vm.size))

"""oVirt's balloon rule for MoM, the Memory Overcommitment Manager.

Source: vdsm, static/etc/vdsm/mom.d/02-balloon.policy (the rule); mom, doc/mom-balloon.conf (the
intervals, which vdsm sets to 15 s) and mom/Entity.py (averages). No guest has a guaranteed minimum.

MoM reads the host's free memory as MemFree + Buffers + Cached, which counts the memory of guests in
a memfd as free; here it is told what is available.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from statistics import fmean
from typing import Final

from tests.policy.rule import HostView, Orders, VmView

COLLECTED: Final = 5
DECIDED: Final = 10
"""Seconds between two looks, and between two decisions."""
HISTORY: Final = 10
"""Averages are over so many looks."""
PRESSURE: Final = 0.2
CRITICAL: Final = 0.05
"""Shares of the host that are free, below which guests are shrunk, and made to swap."""
GUEST_FREE: Final = 0.2
"""The share that a guest may keep free without pressure; in proportion to the host's below it."""
LARGEST: Final = 0.05
SMALLEST: Final = 0.0025
"""The largest and the smallest change, as parts of what a guest has."""


class Mom:
    """Shrinks all guests while the host is under pressure, and grows all of them otherwise."""

    name = "MoM"
    period = COLLECTED

    def __init__(self) -> None:
        self._host: deque[float] = deque(maxlen=HISTORY)
        self._used: defaultdict[str, deque[float]] = defaultdict(lambda: deque(maxlen=HISTORY))

    def tick(self, now: int, host: HostView, vms: Sequence[VmView]) -> Orders:
        self._host.append(max(host.available, 0.0) / host.total)
        for vm in vms:
            if vm.sample is not None:
                self._used[vm.name].append(vm.actual - vm.sample.free)
        if now % DECIDED:
            return {}, ()
        free = fmean(self._host)
        targets = {
            vm.name: self._target(vm, free) for vm in vms if vm.sample is not None and vm.has_driver
        }
        return {
            vm.name: targets[vm.name]
            for vm in vms
            if vm.name in targets and abs(targets[vm.name] - vm.actual) > SMALLEST * vm.actual
        }, ()

    def _target(self, vm: VmView, host_free: float) -> float:
        """What a guest is to have, with a share host_free of the host free."""
        if host_free <= CRITICAL:
            guest_free = host_free - CRITICAL
        else:
            guest_free = GUEST_FREE * host_free / PRESSURE
        least = fmean(self._used[vm.name]) + guest_free * vm.actual
        if host_free < PRESSURE:
            return min(vm.actual, max(least, vm.actual * (1 - LARGEST)))
        return min(vm.size, max(least, vm.actual * (1 + LARGEST)))

"""How long deciding takes, in processor time: the machine may have other work."""

from __future__ import annotations

from time import thread_time

from vhost_balloon.policy.decide import decide, judge
from vhost_balloon.policy.inputs import HostFigures, Sample, VmFigures
from vhost_balloon.policy.memory import Memory

GIB = 1 << 30


def milliseconds(count: int = 200, ticks: int = 20) -> float:
    """The quickest of some ticks for so many VMs on a short host, each with a new sample."""
    memory: Memory = {}
    host = judge(HostFigures(GIB, 64 * GIB), 6 * GIB)
    quickest = float("inf")
    for tick in range(ticks):
        sample = Sample(2.0 * tick, 4 * GIB, 2 * GIB, tick)
        vm = VmFigures("guest", 4 * GIB, 4 * GIB, 4 * GIB, 3 * GIB, sample)
        vms = {f"vm{index}": vm for index in range(count)}
        start = thread_time()
        memory = decide(2.0 * tick, host, vms, memory).memory
        quickest = min(quickest, thread_time() - start)
    return 1000 * quickest

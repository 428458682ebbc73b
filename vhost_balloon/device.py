"""What the queues of one attached guest share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from vhost_balloon.balloon import Balloon
from vhost_balloon.counters import Counters
from vhost_balloon.guest_memory import DiscardPolicy, GuestMemory
from vhost_balloon.heartbeat import Heartbeat
from vhost_balloon.log import VmLog
from vhost_balloon.ranges import Range, merge


@dataclass(slots=True)
class Device:
    """protected are the guest ranges of all started rings, which are never discarded."""

    balloon: Balloon
    counters: Counters
    policy: DiscardPolicy
    heartbeat: Heartbeat
    log: VmLog
    memory: GuestMemory = field(default_factory=GuestMemory)
    protected: list[Range] = field(default_factory=list)

    def protect(self, ranges: Iterable[Range]) -> None:
        self.protected = merge(ranges)

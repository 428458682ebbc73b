"""What the queues of one attached guest share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from protocol.virtio_balloon import Queue
from vhost_balloon.balloon import Balloon
from vhost_balloon.counters import Counters
from vhost_balloon.guest_memory import DiscardMode, DiscardPolicy, GuestMemory
from vhost_balloon.heartbeat import Heartbeat
from vhost_balloon.log import VmLog
from vhost_balloon.pins import PinGuard, PinState
from vhost_balloon.ranges import Range, merge
from vhost_balloon.refusal import Refusal

_PIN_REFUSALS = {PinState.PINNED: Refusal.PINNED, PinState.UNKNOWN: Refusal.PINS_UNKNOWN}
_PIN_MESSAGES = {
    PinState.FREE: "the front end has no memory pinned any more: discarding goes on",
    PinState.PINNED: "the front end has memory pinned for a device: nothing is discarded",
    PinState.UNKNOWN: "it cannot be told whether the front end has memory pinned: nothing is "
    "discarded (--discard=always discards without looking)",
}


@dataclass(slots=True)
class Device:
    """What processors ask before they act.

    paused: the operator has paused reporting discards. foreign: its state was left by a later
    version of this program, and may mean more than is understood. protected are the guest ranges
    of all started rings, which are never discarded.
    """

    balloon: Balloon
    counters: Counters
    policy: DiscardPolicy
    heartbeat: Heartbeat
    pins: PinGuard
    log: VmLog
    memory: GuestMemory = field(default_factory=GuestMemory)
    protected: list[Range] = field(default_factory=list)
    paused: bool = False
    foreign: bool = False
    _pins_seen: PinState = PinState.FREE

    def refusal(self, queue: Queue) -> str | None:
        """Why nothing on this queue is discarded, by the last look, or None if it is."""
        if self.foreign:
            return Refusal.FOREIGN
        mode = self.policy.mode
        if mode is DiscardMode.NEVER:
            return Refusal.NEVER
        if mode is DiscardMode.AUTO and self._pins_seen is not PinState.FREE:
            return _PIN_REFUSALS[self._pins_seen]
        if queue is not Queue.REPORTING:
            return None
        if self.paused:
            return Refusal.PAUSED
        return None if self.balloon.may_drop_reported else Refusal.POISON

    def look_for_pins(self, now: float) -> None:
        """See whether the front end has memory pinned; a change is logged."""
        if self.policy.mode is not DiscardMode.AUTO:
            return
        state = self.pins.check(self.memory.size, now)
        if state is not self._pins_seen:
            self._pins_seen = state
            self.log.warning(_PIN_MESSAGES[state])

    def protect(self, ranges: Iterable[Range]) -> None:
        self.protected = merge(ranges)

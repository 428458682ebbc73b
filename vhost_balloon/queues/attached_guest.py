"""What the queues of one attached guest share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from protocol.virtio_balloon import BalloonFeature, Queue
from vhost_balloon.balloon.device import Balloon
from vhost_balloon.figures.counters import Counters
from vhost_balloon.figures.discard_policy import DiscardMode, DiscardPolicy
from vhost_balloon.figures.refusal import Refusal
from vhost_balloon.log.lines import VmLog
from vhost_balloon.memory.gathering import Gathering
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.memory.pins import PinGuard, PinState
from vhost_balloon.memory.ranges import Range, merge, total
from vhost_balloon.memory.region import Part
from vhost_balloon.pace.rate import Bucket
from vhost_balloon.pace.wakefulness import Wakefulness

_PIN_REFUSALS = {PinState.PINNED: Refusal.PINNED, PinState.UNKNOWN: Refusal.PINS_UNKNOWN}
_PIN_MESSAGES = {
    PinState.FREE: "the front end has no memory pinned any more: discarding goes on",
    PinState.PINNED: "nothing is discarded: the front end has memory pinned for a device",
    PinState.UNKNOWN: "nothing is discarded: whether the front end has memory pinned for a "
    "passed-through device cannot be told ({why}); if no device is passed through to the guest, "
    "start the daemon with --discard=always",
}


@dataclass(slots=True)
class AttachedGuest:
    """What processors ask before they act.

    paused: the operator has paused reporting discards. foreign: its state was left by a later
    version of this program, and may mean more than is understood. protected are the guest ranges
    of all started rings, which are never discarded. report_limit: of bytes that reports may have
    discarded, None for no limit. counted: called when counters change.
    """

    balloon: Balloon
    counters: Counters
    policy: DiscardPolicy
    wakefulness: Wakefulness
    pins: PinGuard
    log: VmLog
    memory: GuestMemory = field(default_factory=GuestMemory)
    protected: list[Range] = field(default_factory=list)
    paused: bool = False
    foreign: bool = False
    report_limit: Bucket | None = None
    counted: Callable[[], None] = lambda: None
    gathering: Gathering = field(default_factory=Gathering)
    _pins_seen: PinState | None = None

    def refusal(self, queue: Queue) -> str | None:
        """Why nothing on this queue is discarded, by the last look, or None if it is."""
        if self.foreign:
            return Refusal.FOREIGN
        mode = self.policy.mode
        if mode is DiscardMode.NEVER:
            return Refusal.NEVER
        if mode is DiscardMode.AUTO and self._pins_seen is not PinState.FREE:
            return _PIN_REFUSALS[self._pins_seen or PinState.UNKNOWN]
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
        before, self._pins_seen = self._pins_seen, state
        if state is not (before or PinState.FREE):
            self.log.misbehaved(_PIN_MESSAGES[state].format(why=self.pins.why))

    def protect(self, ranges: Iterable[Range]) -> None:
        self.protected = merge(ranges)

    # Huge pages that come in small ones

    def gathering_for(self, queue: Queue) -> Gathering | None:
        """Where what this queue gives is gathered, if it has to be and may be.

        Reported pages are the guest's again with the answer; those in the balloon are only if
        MUST_TELL_HOST was not negotiated.
        """
        if queue is not Queue.INFLATE or not self.memory.has_grids:
            return None
        may_wait = self.balloon.features & BalloonFeature.MUST_TELL_HOST
        return self.gathering if may_wait else None

    def forget_gathered(self) -> None:
        """What is known of the balloon may be wrong from here on."""
        self.gathering.clear()
        self.count_forgotten()

    def count_forgotten(self) -> None:
        """No later request can complete them: now they are refused."""
        if size := self.gathering.forgotten():
            self.counters.refuse(Refusal.PARTIAL_HUGE_PAGE, size)

    def still_whole(self, piece: list[Part]) -> list[Part]:
        """What of a piece may go where its huge pages may only if no deflate named a part of one
        since they were complete."""
        return [left for part in piece if (left := self._still_whole(part)).ranges]

    def _still_whole(self, part: Part) -> Part:
        if part.region.grid is None:
            return part
        ranges = [each for each in part.ranges if self.gathering.is_whole(each[0])]
        return Part(part.region, ranges, total(ranges))

"""What all queues of one attached guest share, and the rules that they ask before they discard."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from protocol.virtio_balloon import BalloonFeature
from vhost_balloon.balloon.device import Balloon
from vhost_balloon.figures.counters import Counters
from vhost_balloon.figures.discard_policy import DiscardMode, DiscardPolicy
from vhost_balloon.figures.refusal import OPERATOR, PAUSE_REASONS, Refusal
from vhost_balloon.log.lines import VmLog
from vhost_balloon.memory.gathering import Gathering
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.memory.pin_guard import PinGuard
from vhost_balloon.memory.pins import PinState
from vhost_balloon.memory.ranges import Range, merge
from vhost_balloon.memory.region import MappedRegion, Part, refusal
from vhost_balloon.memory.vector import RangeVector
from vhost_balloon.pace.polling import Polling
from vhost_balloon.pace.rate import Bucket
from vhost_balloon.pace.wakefulness import Wakefulness

_PIN_REFUSALS = {PinState.PINNED: Refusal.PINNED, PinState.UNKNOWN: Refusal.PINS_UNKNOWN}
_PIN_MESSAGES = {
    PinState.FREE: "the front end has no memory pinned: discarding again",
    PinState.PINNED: "nothing is discarded: the front end has memory pinned for a device",
    PinState.UNKNOWN: "nothing is discarded: {hint}",
}


@dataclass(slots=True)
class AttachedGuest:
    """State shared by all processors.

    protected: guest ranges of all started rings, which are never discarded. paused: the operator
    paused reporting. foreign: a later version of this program left the guest's state, which may
    mean more than this version understands. report_limit: limits the bytes discarded for reports;
    None for no limit. counted: called when counters change. polling: the connection's.
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
    polling: Polling = field(default_factory=Polling)
    _pins_seen: PinState | None = None
    _pins_logged: PinState = PinState.FREE

    def refusal(self) -> str | None:
        """Why nothing is discarded, as of the last look for pins; None if no rule forbids it."""
        found = self._refusals()
        return found[0] if found else None

    def report_refusal(self) -> str | None:
        """Why no reported memory is discarded; None if no rule forbids it."""
        found = self._report_refusals()
        return found[0] if found else None

    def pause_reasons(self, now: float) -> tuple[str, ...]:
        """Every reason why reports are acknowledged without being discarded."""
        applying = {*self._report_refusals(), *self._refused_backings()}
        if Refusal.PAUSED in applying:
            applying.add(OPERATOR)
        if self.report_limit is not None and self.report_limit.is_spent(now):
            applying.add(Refusal.RATE)
        return tuple(reason for reason in PAUSE_REASONS if reason in applying)

    def _refusals(self) -> list[str]:
        """The rules that forbid every discard."""
        found: list[str] = []
        if self.foreign:
            found.append(Refusal.FOREIGN)
        mode = self.policy.mode
        if mode is DiscardMode.NEVER:
            found.append(Refusal.NEVER)
        if mode is DiscardMode.AUTO and self._pins_seen is not PinState.FREE:
            found.append(_PIN_REFUSALS[self._pins_seen or PinState.UNKNOWN])
        return found

    def _report_refusals(self) -> list[str]:
        """The rules that forbid every discard of reported memory."""
        found = self._refusals()
        if self.paused:
            found.append(Refusal.PAUSED)
        if not self.balloon.may_drop_reported:
            found.append(Refusal.POISON)
        return found

    def _refused_backings(self) -> set[str]:
        """Why the file systems keep all of the guest's memory; empty if some is discarded."""
        found = {
            refusal(self.policy, held.filesystem)
            for held in self.memory.regions
            if isinstance(held, MappedRegion) and held.guest_start not in self.balloon.ram.left_out
        }
        return {reason for reason in found if reason is not None} if None not in found else set()

    def look_for_pins(self, now: float) -> None:
        """Check whether the front end has memory pinned, and log a change."""
        if self.policy.mode is not DiscardMode.AUTO:
            return
        self._pins_seen = state = self.pins.check(self.balloon.memory_size, now)
        if state is PinState.UNKNOWN and not self.pins.is_settled(now):
            return
        before, self._pins_logged = self._pins_logged, state
        if state is not before:
            self.log.misbehaved(_PIN_MESSAGES[state].format(hint=self.pins.hint()))

    def pause_hint(self) -> str | None:
        """Why it is unknown whether memory is pinned, and what to do; None if it is known."""
        return self.pins.hint() if Refusal.PINS_UNKNOWN in self._refusals() else None

    def protect(self, ranges: Iterable[Range]) -> None:
        self.protected = merge(ranges)

    # Huge pages that the guest gives in small pages

    def inflate_gathering(self) -> Gathering | None:
        """Where inflated pages wait until they make up a whole host page; None if they need not or
        must not wait.

        They may wait where MUST_TELL_HOST was negotiated: without it, the guest may use them again
        once it has the answer, as it may use reported pages.
        """
        if not self.memory.has_grids:
            return None
        may_wait = self.balloon.features & BalloonFeature.MUST_TELL_HOST
        return self.gathering if may_wait else None

    def forget_gathered(self) -> None:
        """Forget all gathered pages, because the record of the balloon may be wrong from now on."""
        self.gathering.clear()
        self.count_forgotten()

    def count_forgotten(self) -> None:
        """Count forgotten pages as refused: no later request can complete them."""
        if size := self.gathering.forgotten():
            self.counters.refuse(Refusal.PARTIAL_HUGE_PAGE, size)

    def still_whole(self, piece: Part) -> Part | None:
        """The rest of a piece without the gathered huge pages that a deflate has broken up since
        they were complete; None if nothing is left."""
        if piece.region.grid is None:
            return piece
        ranges = RangeVector.of([each for each in piece.ranges if self.gathering.is_whole(each[0])])
        return Part(piece.region, ranges, ranges.total()) if ranges else None

"""What each kind of queue does with its chains.

Rules kept here:
- A chain is used only after the discards that it stands for have finished.
- No chain is held for longer than HOLD_LIMIT: what is left of it then, or what was found waiting
  for longer than that, is acknowledged without being discarded.
- All is done in place, in pieces of some two milliseconds. Between two pieces everything else has
  its turn: messages, a stop, the other queues, the control socket. A ring that is to stop gets to
  the end of its piece; the chain is left unused, and doing it again later is harmless.
- A huge page that was given in small ones is discarded only while no deflate named any of it (see
  gathering, deflate_processor).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain as joined
from typing import Final

import trio

from protocol.virtio_balloon import Queue
from vhost_balloon.decode import Named, page_buffers_size, pages, report_size, reported
from vhost_balloon.device import Device
from vhost_balloon.discard import count_of, pieces, punch, size_of
from vhost_balloon.errors import RingError
from vhost_balloon.gathering import Gathering
from vhost_balloon.guest_memory import Part
from vhost_balloon.ranges import total
from vhost_balloon.refusal import BY_RULE, Refusal
from vhost_balloon.ring import StartedRing
from vhost_balloon.virtqueue import Buffer, Chain
from vhost_balloon.wakefulness import HOLD_LIMIT

MAX_TAKEN_BUFFERS: Final = 128
"""Chains are taken together, so that their ranges merge, up to so many buffers."""

WORK_LIMIT: Final = HOLD_LIMIT - 0.05
"""When to stop discarding for a request: a last piece and its answer come after it."""

others: Final = trio.lowlevel.cancel_shielded_checkpoint
"""Lets everything else have its turn. A request is finished or left as it was, so nothing is
cancelled here."""


async def take(ring: StartedRing) -> tuple[list[Chain], RingError | None]:
    """Pop chains up to MAX_TAKEN_BUFFERS. A broken one is reported after those before it."""
    chains: list[Chain] = []
    room = MAX_TAKEN_BUFFERS
    try:
        while room > 0:
            chain = ring.virtqueue.pop_plain() or await ring.pop()
            if chain is None:
                break
            chains.append(chain)
            room -= len(chain.buffers)
    except RingError as error:
        return chains, error
    return chains, None


@dataclass(slots=True)
class Tally:
    """What a request came to, counted once it is complete: one that is left will come again.

    size: bytes named. inside: of these, the bytes inside memory. refused: bytes that were refused,
    and how often, by reason.
    """

    size: int = 0
    inside: int = 0
    refused: dict[str, tuple[int, int]] = field(default_factory=dict)

    def refuse(self, reason: str, size: int) -> None:
        if size:
            self.add([(reason, size)])

    def add(self, refusals: Iterable[tuple[str, int]]) -> None:
        for reason, size in refusals:
            refused, times = self.refused.get(reason, (0, 0))
            self.refused[reason] = refused + size, times + 1


class ChainProcessor(ABC):
    """Takes chains together, serves them, uses them."""

    def __init__(self, device: Device, queue: Queue) -> None:
        self._device = device
        self._queue = queue

    async def drain(self, ring: StartedRing) -> None:
        since = trio.current_time() - self._device.wakefulness.waited()
        ring.waiting_since = min(ring.waiting_since, since)
        while True:
            looked = trio.current_time()
            chains, error = await take(ring)
            if ring.stopping:
                return
            if chains:
                tally = await self._serve(ring, chains, ring.waiting_since + WORK_LIMIT)
                if tally is None:
                    return
                ring.complete([chain.head for chain in chains])
                self._count(len(chains), tally)  # the guest does not wait for this
            if error is not None:
                raise error
            if not ring.virtqueue.pending():
                ring.waiting_since = math.inf
                return
            if sum([len(chain.buffers) for chain in chains]) < MAX_TAKEN_BUFFERS:
                ring.waiting_since = looked  # all there was had been taken: these came later
            await others()

    @abstractmethod
    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        """Do what the chains ask for; None if the ring is to stop before it was done."""

    def _count(self, requests: int, tally: Tally) -> None:
        """Count chains that were used, and what they came to."""
        counters = self._device.counters
        self._device.counted()
        counters.requests[self._queue] += requests
        match self._queue:
            case Queue.INFLATE:
                counters.inflated_bytes += tally.inside
            case Queue.DEFLATE:
                counters.deflated_bytes += tally.inside
            case Queue.REPORTING:
                counters.reported_bytes += tally.inside
        if not tally.refused:
            return
        for reason, (refused, times) in tally.refused.items():
            counters.refuse(reason, refused, times)
        faults = tally.refused.keys() - BY_RULE
        if faults:
            text = ", ".join(sorted(faults))
            self._device.log.misbehaved(f"{self._queue.value}: not discarded: {text}")

    def detach(self) -> None:  # noqa: B027 - nothing is kept between two drains
        """See Processor."""


class DiscardProcessor(ChainProcessor):
    """Inflate and reporting: the guest gives pages away."""

    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        buffers = buffers_of(chains)
        is_report = self._queue is Queue.REPORTING
        slices = reported(buffers) if is_report else pages(buffers, self._device.memory.read)
        done, begun = Tally(), False
        for named in slices:
            if begun:
                await others()
            if ring.stopping:
                return None
            now = trio.current_time()
            if now >= deadline and (begun or not is_report):
                size = report_size(buffers) if is_report else page_buffers_size(buffers)
                done.refuse(Refusal.LATE, size - done.size)
                break
            begun = True
            if not await self._act(ring, named, now, deadline, done):
                return None
            done.size += named.size
            done.add(named.refusals)
        return done

    async def _act(
        self, ring: StartedRing, named: Named, now: float, deadline: float, done: Tally
    ) -> bool:
        """Discard what was named, unless a rule keeps it; False if the ring is to stop."""
        device = self._device
        device.look_for_pins(now)
        refusal = device.refusal(self._queue)
        if refusal is not None:
            done.inside += device.memory.inside(named.ranges)
            done.refuse(refusal, total(named.ranges))
            return True
        gathering = device.gathering_for(self._queue)
        parts, refusals, inside = device.memory.resolve(
            named.ranges, device.protected, device.policy, gathering
        )
        done.inside += inside
        done.add(refusals)
        if gathering is not None:
            device.count_forgotten()
        left = size_of(parts)
        for number, piece in enumerate(pieces(parts)):
            if number:
                await others()
                if ring.stopping:
                    return False
            size = size_of(piece)
            reason = self._too_much(size, deadline)
            if reason is not None:
                done.refuse(reason, left)
                break
            left -= size
            self._discard(piece, gathering, done)
        return True

    def _too_much(self, size: int, deadline: float) -> str | None:
        """Why a piece, and all after it, is acknowledged only: it comes too late, or there are too
        many reports."""
        now = trio.current_time()
        if now >= deadline:
            return Refusal.LATE
        limit = self._device.report_limit
        if limit is None or self._queue is not Queue.REPORTING:
            return None
        if limit.is_spent(now):
            return Refusal.RATE
        limit.take(size, now)
        return None

    def _discard(self, piece: list[Part], gathering: Gathering | None, done: Tally) -> None:
        """Discard a piece, and count what came of it."""
        if gathering is not None:
            piece = self._device.still_whole(piece)
        if not piece:
            return
        result = punch(piece)
        counters = self._device.counters
        counters.freed_bytes += result.freed
        counters.discard_seconds.observe(result.seconds)
        if result.error is not None:
            done.refuse(Refusal.FAILED, result.failed)
            self._device.log.misbehaved(f"memory cannot be discarded: {result.error.strerror}")
        elif gathering is not None:
            whole = [part for part in piece if part.region.grid is not None]
            counters.huge_pages_freed += count_of(whole)


def buffers_of(chains: list[Chain]) -> Sequence[Buffer]:
    return (
        chains[0].buffers
        if len(chains) == 1
        else list(joined.from_iterable(chain.buffers for chain in chains))
    )


class HintProcessor(ChainProcessor):
    """Free page hints: acknowledged, never acted on.

    A guest may take a hinted page back before we could act. The command id stays at STOP, so a
    correct driver sends nothing here.
    """

    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        return Tally()

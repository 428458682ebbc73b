"""What each kind of queue does with its chains.

Rules kept here:
- A chain is used only after the discards that it stands for have finished.
- No chain is held for longer than HOLD_LIMIT: what is left of it then, or what was found waiting
  for longer than that, is acknowledged without being discarded.
- A ring that is to stop gets to its end of batch at most; the chain is left unused, and doing it
  again later is harmless.
- A huge page that was given in small ones is discarded only while no deflate named any of it, and a
  deflate of what is being discarded is used after that (see gathering, deflate_processor).
- Work is cut into steps of some 200 us, and after each all others have their turn: whatever a
  guest names, no VM waits for another one's request.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain as joined
from typing import Final

import trio

from protocol.virtio_balloon import Queue
from vhost_balloon.decode import (
    STEP_GATHERED,
    STEP_RANGES,
    Named,
    page_buffers_size,
    pages,
    report_size,
    reported,
)
from vhost_balloon.device import Device
from vhost_balloon.discard import (
    DISCARDING,
    Discarded,
    batches,
    count_of,
    discard,
    fits_inline,
    punch,
    size_of,
)
from vhost_balloon.errors import RingError
from vhost_balloon.gathering import Gathering
from vhost_balloon.guest_memory import Part
from vhost_balloon.heartbeat import HOLD_LIMIT
from vhost_balloon.ranges import Range, total
from vhost_balloon.refusal import BY_RULE, Refusal
from vhost_balloon.ring import StartedRing
from vhost_balloon.turn import Turn
from vhost_balloon.virtqueue import Buffer, Chain

MAX_TAKEN_BUFFERS: Final = 128
"""Chains are taken together, so that their ranges merge, up to so many buffers."""

COUNTED_BUFFERS: Final = 1024
"""Buffers whose lengths are added up in one step."""

WORK_LIMIT: Final = HOLD_LIMIT - 0.05
"""When to stop discarding for a request: a last batch and its answer come after it."""


async def take(ring: StartedRing, turn: Turn) -> tuple[list[Chain], RingError | None] | None:
    """Pop chains up to MAX_TAKEN_BUFFERS. A broken one is reported after those before it.

    None if the ring is to stop meanwhile: what is broken will be found again.
    """
    chains: list[Chain] = []
    room = MAX_TAKEN_BUFFERS
    try:
        while room > 0:
            plain = ring.virtqueue.pop_plain()
            if plain is not None:
                chains.append(plain)
                room -= 1
                continue
            before = len(chains)
            for popped in ring.virtqueue.popping():
                if popped is not None:
                    chains.append(popped)
                    room -= len(popped.buffers)
                    continue
                await turn.others()
                if ring.stopping:
                    return None
            if len(chains) == before:
                break
    except RingError as error:
        return chains, error
    return chains, None


async def add_up(
    size: Callable[[Iterable[Buffer]], int], chains: Iterable[Chain], turn: Turn
) -> int:
    """size of all buffers, which may be many."""
    found = 0
    for chain in chains:
        for start in range(0, len(chain.buffers), COUNTED_BUFFERS):
            if start:
                await turn.others()
            found += size(chain.buffers[start : start + COUNTED_BUFFERS])
    return found


@dataclass(slots=True)
class Tally:
    """What a request came to, counted once it is complete: one that is left will come again.

    size: bytes named. inside: of these, the bytes inside memory. refused: bytes that were refused,
    and how often, by reason. runs, numbers: pages that have still to be looked at.
    """

    size: int = 0
    inside: int = 0
    refused: dict[str, tuple[int, int]] = field(default_factory=dict)
    runs: list[Range] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)

    def refuse(self, reason: str, size: int) -> None:
        if size:
            self.add([(reason, size)])

    def add(self, refusals: Iterable[tuple[str, int]]) -> None:
        for reason, size in refusals:
            refused, times = self.refused.get(reason, (0, 0))
            self.refused[reason] = refused + size, times + 1


class ChainProcessor(ABC):
    """Takes chains together, serves them, uses them. turn is the guest's."""

    def __init__(self, device: Device, queue: Queue, turn: Turn) -> None:
        self._device = device
        self._turn = turn
        self._queue = queue

    async def drain(self, ring: StartedRing) -> None:
        found = trio.current_time()
        if self._device.heartbeat.found_late(found):
            found -= HOLD_LIMIT
        ring.waiting_since = min(ring.waiting_since, found)
        while not ring.stopping:
            looked = trio.current_time()
            taken = await take(ring, self._turn)
            if taken is None:
                return
            chains, error = taken
            if chains:
                tally = await self._serve(ring, chains, ring.waiting_since + WORK_LIMIT)
                if tally is None:
                    return
                ring.complete([chain.head for chain in chains])
                await self._count(len(chains), tally)  # the guest does not wait for this
            if error is not None:
                raise error
            if not ring.virtqueue.pending():
                ring.waiting_since = math.inf
                return
            if sum(len(chain.buffers) for chain in chains) < MAX_TAKEN_BUFFERS:
                ring.waiting_since = looked  # all there was had been taken: these came later
            await self._turn.others()

    @abstractmethod
    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        """Do what the chains ask for; None if the ring is to stop before it was done."""

    async def _count(self, requests: int, tally: Tally) -> None:
        """Count chains that were used, and what they came to."""
        counters = self._device.counters
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
    """Inflate and reporting: the guest gives pages away.

    slot: what both queues of a guest share, so that a guest discards in one thread at a time.
    """

    def __init__(self, device: Device, queue: Queue, turn: Turn, slot: trio.Lock) -> None:
        super().__init__(device, queue, turn)
        self._slot = slot

    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        done = Tally()
        begun = False
        for named in self._decode(chains):
            if begun:
                await self._turn.others()
            if ring.stopping:
                return None
            now = trio.current_time()
            if now >= deadline and (begun or self._queue is not Queue.REPORTING):
                done.refuse(Refusal.LATE, await self._size(chains) - done.size)
                break
            begun = True
            if not await self._act(ring, named, now, deadline, done):
                return None
            done.size += named.size
            done.add(named.refusals)
        return done

    def _decode(self, chains: list[Chain]) -> Iterable[Named]:
        if self._queue is Queue.REPORTING:
            return reported(buffers_of(chains))
        device = self._device
        most = STEP_GATHERED if device.memory.has_grids else STEP_RANGES
        return pages(buffers_of(chains), device.memory.read, most)

    async def _size(self, chains: list[Chain]) -> int:
        """Bytes that the chains name, as decoding them to the end would count."""
        is_report = self._queue is Queue.REPORTING
        return await add_up(report_size if is_report else page_buffers_size, chains, self._turn)

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
        for batch in batches(parts):
            if ring.stopping:
                return False
            reason = self._too_much(batch, deadline)
            if reason is None:
                reason = await self._discard(batch, deadline, gathering, done)
            if reason is not None:
                done.refuse(reason, size_of(batch))
        return True

    def _too_much(self, batch: list[Part], deadline: float) -> str | None:
        """Why a batch is acknowledged only: it comes too late, or there are too many reports."""
        now = trio.current_time()
        if now >= deadline:
            return Refusal.LATE
        limit = self._device.report_limit
        if limit is None or self._queue is not Queue.REPORTING:
            return None
        if limit.is_spent(now):
            return Refusal.RATE
        limit.take(size_of(batch), now)
        return None

    async def _discard(
        self, batch: list[Part], deadline: float, gathering: Gathering | None, done: Tally
    ) -> str | None:
        """Discard a batch, unless it waited for its turn for too long: the reason is returned."""
        if fits_inline(batch):
            with self._device.discarding(batch, gathering) as left:
                if left:
                    self._account(left, punch(left), gathering, done)
            return None
        async with self._slot, DISCARDING:
            if trio.current_time() >= deadline:
                return Refusal.LATE
            with self._device.discarding(batch, gathering) as left:
                if left:
                    self._account(left, await discard(left), gathering, done)
        return None

    def _account(
        self, batch: list[Part], result: Discarded, gathering: Gathering | None, done: Tally
    ) -> None:
        """Count what came of a batch."""
        counters = self._device.counters
        counters.freed_bytes += result.freed
        counters.discard_seconds.observe(result.seconds)
        if result.error is not None:
            done.refuse(Refusal.FAILED, result.failed)
            self._device.log.misbehaved(f"memory cannot be discarded: {result.error.strerror}")
        elif gathering is not None:
            whole = [part for part in batch if part.region.grid is not None]
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

    def __init__(self, device: Device, turn: Turn) -> None:
        super().__init__(device, Queue.FREE_PAGE, turn)

    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        return Tally()

"""What each kind of queue does with its chains.

Rules kept here:
- A chain is used only after the discards that it stands for have finished.
- No chain is held for longer than HOLD_LIMIT: what is left of it then, or what was found waiting
  for longer than that, is acknowledged without being discarded.
- A ring that is to stop gets to its end of batch at most; the chain is left unused, and doing it
  again later is harmless.
- Work is cut into steps of some 200 us, and after each all others have their turn: whatever a
  guest names, no VM waits for another one's request.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain as joined
from typing import Final

import trio

from protocol.virtio_balloon import BALLOON_PAGE_SIZE, Queue
from vhost_balloon.decode import (
    MAX_SLICE_PFNS,
    Named,
    merged,
    page_buffers_size,
    page_numbers,
    pages,
    report_size,
    reported,
)
from vhost_balloon.device import Device
from vhost_balloon.discard import DISCARDING, batches, discard, fits_inline
from vhost_balloon.errors import RingError
from vhost_balloon.guest_memory import Piece
from vhost_balloon.heartbeat import HOLD_LIMIT
from vhost_balloon.ranges import total
from vhost_balloon.refusal import BY_RULE, Refusal
from vhost_balloon.ring import StartedRing
from vhost_balloon.turn import Turn
from vhost_balloon.virtqueue import Buffer, Chain

MAX_TAKEN_BUFFERS: Final = 128
"""Chains are taken together, so that their ranges merge, up to so many buffers."""

MAX_DEFLATED_PFNS: Final = 16384
"""Page numbers of deflate requests that are looked at; those beyond them count as late."""

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

    size: bytes named. inside: of these, the bytes inside memory. refused and refusals: bytes that
    were refused, and how often, by reason. numbers: page numbers that have still to be looked at.
    """

    size: int = 0
    inside: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    numbers: list[int] = field(default_factory=list)

    def refuse(self, reason: str, size: int) -> None:
        if size:
            self.add([(reason, size)])

    def add(self, refusals: Iterable[tuple[str, int]]) -> None:
        for reason, size in refusals:
            self.refused[reason] += size
            self.refusals[reason] += 1


class _Processor(ABC):
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
        for reason, size in tally.refused.items():
            counters.refuse(reason, size, tally.refusals[reason])
        faults = tally.refused.keys() - BY_RULE
        if faults:
            text = ", ".join(sorted(faults))
            self._device.log.misbehaved(f"{self._queue.value}: not discarded: {text}")

    def detach(self) -> None:  # noqa: B027 - nothing is kept between two drains
        """See Processor."""


class DiscardProcessor(_Processor):
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
            is_late = trio.current_time() >= deadline
            if is_late and (begun or self._queue is not Queue.REPORTING):
                done.refuse(Refusal.LATE, await self._size(chains) - done.size)
                break
            begun = True
            if not await self._act(ring, named, deadline, done):
                return None
            done.size += named.size
            done.add(named.refusals)
        return done

    def _decode(self, chains: list[Chain]) -> Iterator[Named]:
        if self._queue is Queue.REPORTING:
            return reported(_buffers(chains))
        return pages(_buffers(chains), self._device.memory.read)

    async def _size(self, chains: list[Chain]) -> int:
        """Bytes that the chains name, as decoding them to the end would count."""
        is_report = self._queue is Queue.REPORTING
        return await add_up(report_size if is_report else page_buffers_size, chains, self._turn)

    async def _act(self, ring: StartedRing, named: Named, deadline: float, done: Tally) -> bool:
        """Discard what was named, unless a rule keeps it; False if the ring is to stop."""
        memory = self._device.memory
        done.inside += memory.inside(named.ranges)
        self._device.look_for_pins(trio.current_time())
        refusal = self._device.refusal(self._queue)
        if refusal is not None:
            done.refuse(refusal, total(named.ranges))
            return True
        pieces, refusals = memory.resolve(named.ranges, self._device.protected, self._device.policy)
        done.add(refusals)
        for batch in batches(pieces):
            if ring.stopping:
                return False
            if trio.current_time() >= deadline:
                done.refuse(Refusal.LATE, sum(piece.length for piece in batch))
                continue
            await self._discard(batch, deadline, done)
        return True

    async def _discard(self, batch: list[Piece], deadline: float, done: Tally) -> None:
        counters = self._device.counters
        if fits_inline(batch):
            result = await discard(batch)
        else:
            async with self._slot, DISCARDING:
                if trio.current_time() >= deadline:
                    done.refuse(Refusal.LATE, sum(piece.length for piece in batch))
                    return
                result = await discard(batch)
        counters.freed_bytes += result.freed
        counters.discard_seconds.observe(result.seconds)
        if result.error is not None:
            done.refuse(Refusal.FAILED, result.failed)
            self._device.log.misbehaved(f"memory cannot be discarded: {result.error.strerror}")


def _buffers(chains: list[Chain]) -> Sequence[Buffer]:
    return list(joined.from_iterable(chain.buffers for chain in chains))


class DeflateProcessor(_Processor):
    """The guest takes pages back: all that it waits for is the answer.

    What it names is read before the answer, because the guest uses its buffers again then, and
    looked at after it. What a chain names beyond MAX_DEFLATED_PFNS counts as late.
    """

    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        tally = Tally()
        begun = False
        for step in page_numbers(_buffers(chains), self._device.memory.read):
            if begun:
                await self._turn.others()
            if ring.stopping:
                return None
            begun = True
            tally.numbers += step.numbers
            tally.add(step.refusals)
            if len(tally.numbers) >= MAX_DEFLATED_PFNS:
                break
        tally.size = len(tally.numbers) * BALLOON_PAGE_SIZE
        tally.refuse(Refusal.LATE, await add_up(page_buffers_size, chains, self._turn) - tally.size)
        return tally

    async def _count(self, requests: int, tally: Tally) -> None:
        slices = range(0, len(tally.numbers), MAX_SLICE_PFNS)
        steps = joined.from_iterable(merged(tally.numbers[n : n + MAX_SLICE_PFNS]) for n in slices)
        for number, ranges in enumerate(steps):
            if number:
                await self._turn.others()
            inside = self._device.memory.inside(ranges)
            tally.inside += inside
            tally.refuse(Refusal.OUTSIDE, total(ranges) - inside)
        await super()._count(requests, tally)


class HintProcessor(_Processor):
    """Free page hints: acknowledged, never acted on.

    A guest may take a hinted page back before we could act. The command id stays at STOP, so a
    correct driver sends nothing here.
    """

    def __init__(self, device: Device, turn: Turn) -> None:
        super().__init__(device, Queue.FREE_PAGE, turn)

    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        return Tally()

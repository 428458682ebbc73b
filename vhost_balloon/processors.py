"""What each kind of queue does with its chains.

Rules kept here:
- A chain is used only after the discards that it stands for have finished.
- No chain is held for longer than HOLD_LIMIT: what is left of it then, or what was found waiting
  for longer than that, is acknowledged without being discarded.
- A ring that is to stop gets to its end of batch at most; the chain is left unused, and doing it
  again later is harmless.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import trio

from protocol.virtio_balloon import Queue
from vhost_balloon.decode import Named, page_buffers_size, pages, reported
from vhost_balloon.device import Device
from vhost_balloon.discard import DISCARDING, batches, discard, fits_inline
from vhost_balloon.errors import RingError
from vhost_balloon.guest_memory import Piece
from vhost_balloon.heartbeat import HOLD_LIMIT
from vhost_balloon.ranges import total
from vhost_balloon.refusal import BY_RULE, Refusal
from vhost_balloon.ring import StartedRing
from vhost_balloon.virtqueue import Chain, Virtqueue

MAX_TAKEN_BUFFERS: Final = 4096
"""Chains are taken together, so that their ranges merge, up to so many buffers."""

WORK_LIMIT: Final = HOLD_LIMIT - 0.05
"""When to stop discarding for a request: a last batch and its answer come after it."""


def take(virtqueue: Virtqueue) -> tuple[list[Chain], RingError | None]:
    """Pop chains up to MAX_TAKEN_BUFFERS. A broken one is reported after those before it."""
    chains: list[Chain] = []
    room = MAX_TAKEN_BUFFERS
    try:
        while room > 0 and (chain := virtqueue.pop()) is not None:
            chains.append(chain)
            room -= len(chain.buffers)
    except RingError as error:
        return chains, error
    return chains, None


@dataclass(slots=True)
class Tally:
    """What a request came to, counted once it is complete: one that is left will come again.

    size: bytes named. inside: of these, the bytes inside memory. refusals: reasons and bytes.
    named: what has still to be looked at.
    """

    size: int = 0
    inside: int = 0
    refusals: list[tuple[str, int]] = field(default_factory=list)
    named: Named = field(default_factory=Named)

    def refuse(self, reason: str, size: int) -> None:
        if size:
            self.refusals.append((reason, size))


class _Processor(ABC):
    """Takes chains together, serves them, uses them."""

    def __init__(self, device: Device, queue: Queue) -> None:
        self._device = device
        self._queue = queue

    async def drain(self, ring: StartedRing) -> None:
        found = trio.current_time()
        if self._device.heartbeat.found_late(found):
            found -= HOLD_LIMIT
        ring.waiting_since = min(ring.waiting_since, found)
        while not ring.stopping:
            looked = trio.current_time()
            chains, error = take(ring.virtqueue)
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
            if sum(len(chain.buffers) for chain in chains) < MAX_TAKEN_BUFFERS:
                ring.waiting_since = looked  # all there was had been taken: these came later
            await trio.lowlevel.cancel_shielded_checkpoint()

    @abstractmethod
    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        """Do what the chains ask for; None if the ring is to stop before it was done."""

    def _count(self, requests: int, tally: Tally) -> None:
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
        if not tally.refusals:
            return
        for reason, size in tally.refusals:
            counters.refuse(reason, size)
        faults = {reason for reason, _ in tally.refusals} - BY_RULE
        if faults:
            text = ", ".join(sorted(faults))
            self._device.log.misbehaved(f"{self._queue.value}: not discarded: {text}")

    def detach(self) -> None:  # noqa: B027 - nothing is kept between two drains
        """See Processor."""


class DiscardProcessor(_Processor):
    """Inflate and reporting: the guest gives pages away."""

    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        done = Tally()
        for named in self._decode(chains):
            if ring.stopping:
                return None
            if trio.current_time() >= deadline and self._queue is not Queue.REPORTING:
                break
            if done.size:  # a big request: let the others have their turn
                await trio.lowlevel.cancel_shielded_checkpoint()
            if not await self._act(ring, named, deadline, done):
                return None
            done.size += named.size
            done.refusals += named.refusals
        done.refuse(Refusal.LATE, self._size(chains) - done.size)
        return done

    def _decode(self, chains: list[Chain]) -> Iterator[Named]:
        buffers = (buffer for chain in chains for buffer in chain.buffers)
        if self._queue is Queue.REPORTING:
            return iter([reported(buffers)])
        return pages(buffers, self._device.memory.read)

    def _size(self, chains: list[Chain]) -> int:
        """Bytes that the chains name, as decoding them to the end would count."""
        if self._queue is Queue.REPORTING:
            return sum(b.length for chain in chains for b in chain.buffers if b.writable)
        return page_buffers_size(buffer for chain in chains for buffer in chain.buffers)

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
        done.refusals += refusals
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
            async with DISCARDING:
                if trio.current_time() >= deadline:
                    done.refuse(Refusal.LATE, sum(piece.length for piece in batch))
                    return
                result = await discard(batch)
        counters.freed_bytes += result.freed
        counters.discard_seconds.observe(result.seconds)
        if result.error is not None:
            done.refuse(Refusal.FAILED, result.failed)
            self._device.log.misbehaved(f"memory cannot be discarded: {result.error.strerror}")


class DeflateProcessor(_Processor):
    """The guest takes pages back: all that it waits for is the answer.

    What it names is read before the answer, because the guest uses its buffers again then, and
    looked at after it. One look takes a slice; what a chain names beyond it counts as late.
    """

    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        buffers = [buffer for chain in chains for buffer in chain.buffers]
        named = next(pages(buffers, self._device.memory.read))
        tally = Tally(named.size, refusals=named.refusals, named=named)
        tally.refuse(Refusal.LATE, page_buffers_size(buffers) - named.size)
        return tally

    def _count(self, requests: int, tally: Tally) -> None:
        tally.inside = self._device.memory.inside(tally.named.ranges)
        tally.refuse(Refusal.OUTSIDE, total(tally.named.ranges) - tally.inside)
        super()._count(requests, tally)


class HintProcessor(_Processor):
    """Free page hints: acknowledged, never acted on.

    A guest may take a hinted page back before we could act. The command id stays at STOP, so a
    correct driver sends nothing here.
    """

    def __init__(self, device: Device) -> None:
        super().__init__(device, Queue.FREE_PAGE)

    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        return Tally()

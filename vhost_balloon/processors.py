"""What each kind of queue does with its chains.

Rules kept here:
- A chain is used only after the discards that it stands for have finished.
- No chain is held for longer than HOLD_LIMIT: what is left of it then, or what was found waiting
  for longer than that, is acknowledged without being discarded.
- A ring that is to stop gets to its end of batch at most; the chain is left unused, and doing it
  again later is harmless.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import trio

from protocol.virtio_balloon import Queue
from vhost_balloon.decode import Named, pages, pages_named, reported
from vhost_balloon.device import Device
from vhost_balloon.discard import batches, discard
from vhost_balloon.errors import RingError
from vhost_balloon.guest_memory import Piece
from vhost_balloon.guest_stats import parse_stats
from vhost_balloon.heartbeat import HOLD_LIMIT
from vhost_balloon.ranges import total
from vhost_balloon.refusal import BY_RULE, Refusal
from vhost_balloon.ring import StartedRing
from vhost_balloon.virtqueue import Chain, Virtqueue

MAX_TAKEN_BUFFERS: Final = 4096
"""Chains are taken together, so that their ranges merge, up to so many buffers."""

MAX_STATS_SIZE: Final = 4096
"""Bytes of a statistics buffer that are read; the 16 tags of today have 160."""

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
    """

    size: int = 0
    inside: int = 0
    refusals: list[tuple[str, int]] = field(default_factory=list)

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
        while not ring.stopping:
            looked = trio.current_time()
            chains, error = take(ring.virtqueue)
            if chains:
                if not await self._serve(ring, chains, found + WORK_LIMIT):
                    return
                self._device.counters.requests[self._queue] += len(chains)
                ring.complete([chain.head for chain in chains])
            if error is not None:
                raise error
            if not ring.virtqueue.pending():
                return
            if sum(len(chain.buffers) for chain in chains) < MAX_TAKEN_BUFFERS:
                found = looked  # all there was had been taken: the next ones came after that
            await trio.lowlevel.cancel_shielded_checkpoint()

    @abstractmethod
    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> bool:
        """Do what the chains ask for; False if the ring is to stop before it was done."""

    def detach(self) -> None:  # noqa: B027 - nothing is kept between two drains
        """See Processor."""


class RangeProcessor(_Processor):
    """Inflate and reporting, where the guest gives pages away, and deflate, where it takes them."""

    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> bool:
        done = Tally()
        for named in self._decode(chains):
            if ring.stopping:
                return False
            if trio.current_time() >= deadline:
                break
            if done.size:  # a big request: let the others have their turn
                await trio.lowlevel.cancel_shielded_checkpoint()
            if not await self._act(ring, named, deadline, done):
                return False
            done.size += named.size
            done.refusals += named.refusals
        left = self._size(chains) - done.size
        if left:
            done.refusals.append((Refusal.LATE, left))
        self._count(done)
        return True

    def _decode(self, chains: list[Chain]) -> Iterator[Named]:
        buffers = (buffer for chain in chains for buffer in chain.buffers)
        if self._queue is Queue.REPORTING:
            return iter([reported(buffers)])
        return pages(buffers, self._device.memory.read)

    def _size(self, chains: list[Chain]) -> int:
        """Bytes that the chains name, as decoding them to the end would count."""
        if self._queue is Queue.REPORTING:
            return sum(b.length for chain in chains for b in chain.buffers if b.writable)
        return sum(pages_named(b.length) for c in chains for b in c.buffers if not b.writable)

    async def _act(self, ring: StartedRing, named: Named, deadline: float, done: Tally) -> bool:
        """Discard what was named, unless a rule keeps it; False if the ring is to stop."""
        memory = self._device.memory
        inside = memory.inside(named.ranges)
        done.inside += inside
        if self._queue is Queue.DEFLATE:
            done.refuse(Refusal.OUTSIDE, total(named.ranges) - inside)
            return True
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
            await self._discard(batch, done)
        return True

    async def _discard(self, batch: list[Piece], done: Tally) -> None:
        counters = self._device.counters
        result = await discard(batch)
        counters.freed_bytes += result.freed
        counters.discard_seconds.observe(result.seconds)
        if result.error is not None:
            done.refuse(Refusal.FAILED, result.failed)
            self._device.log.misbehaved(f"memory cannot be discarded: {result.error.strerror}")

    def _count(self, done: Tally) -> None:
        counters = self._device.counters
        match self._queue:
            case Queue.INFLATE:
                counters.inflated_bytes += done.inside
            case Queue.DEFLATE:
                counters.deflated_bytes += done.inside
            case Queue.REPORTING:
                counters.reported_bytes += done.inside
        for reason, size in done.refusals:
            counters.refuse(reason, size)
        faults = {reason for reason, _ in done.refusals} - BY_RULE
        if faults:
            text = ", ".join(sorted(faults))
            self._device.log.misbehaved(f"{self._queue.value}: not discarded: {text}")


class StatsProcessor:
    """Holds the guest's buffer until statistics are asked for; using it is the question.

    A buffer that is taken again after its ring was stopped is no new sample.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._ring: StartedRing | None = None
        self._held: int | None = None
        self._stale = False
        self._wanted = False
        self.updated = trio.Event()
        """Set, and replaced by a new one, at each new sample."""

    async def drain(self, ring: StartedRing) -> None:
        self._ring = ring
        while (chain := ring.virtqueue.pop()) is not None:
            if self._held is not None:  # two buffers: the older one is done with
                self._release(ring)
            stale, self._stale = self._stale, False
            if not stale:
                self._take_sample(chain)
            self._held = chain.head
            if stale or self._wanted:
                self._release(ring)

    def request(self) -> None:
        """Ask for a fresh sample: now, or as soon as the guest has given its buffer."""
        if self._held is not None and self._ring is not None:
            self._release(self._ring)
        else:
            self._wanted = True

    def forget(self) -> None:
        """A new driver: its first buffer is a new sample."""
        self._stale = self._wanted = False

    def detach(self) -> None:
        self._stale = self._stale or self._held is not None
        self._held, self._ring = None, None

    def _release(self, ring: StartedRing) -> None:
        assert self._held is not None
        head, self._held, self._wanted = self._held, None, False
        self._device.counters.requests[Queue.STATS] += 1
        ring.complete([head])

    def _take_sample(self, chain: Chain) -> None:
        data = bytearray()
        for address, length, writable in chain.buffers:
            if writable:
                self._refuse(Refusal.DIRECTION, length)
                continue
            room = min(length, MAX_STATS_SIZE - len(data))
            data += self._device.memory.read(address, room)
            if room < length:
                self._refuse(Refusal.OVERSIZED, length - room)
        values, tail = parse_stats(bytes(data))
        if tail:
            self._refuse(Refusal.ODD_TAIL, tail)
        if values:
            self._device.balloon.stats.update(values, time.time(), trio.current_time())
            updated, self.updated = self.updated, trio.Event()
            updated.set()

    def _refuse(self, reason: str, size: int) -> None:
        self._device.counters.refuse(reason, size)
        self._device.log.misbehaved(f"statistics buffer: {reason}")


class HintProcessor(_Processor):
    """Free page hints: acknowledged, never acted on.

    A guest may take a hinted page back before we could act. The command id stays at STOP, so a
    correct driver sends nothing here.
    """

    def __init__(self, device: Device) -> None:
        super().__init__(device, Queue.FREE_PAGE)

    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> bool:
        return True

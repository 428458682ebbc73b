"""The statistics queue. The daemon holds the guest's buffer; using it requests the next sample."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import trio

from protocol.virtio_balloon import Queue
from vhost_balloon import clock
from vhost_balloon.balloon.guest_stats import parse_stats
from vhost_balloon.figures.refusal import Refusal
from vhost_balloon.queues.attached_guest import AttachedGuest
from vhost_balloon.queues.processor import Tally
from vhost_balloon.queues.ring import StartedRing
from vhost_balloon.queues.virtqueue import Chain

MAX_STATS_SIZE: Final = 4096
"""Most bytes to read of a statistics buffer. The 16 tags defined today take 160."""


class StatsProcessor:
    """Holds the guest's buffer until a sample is requested.

    A buffer that comes again after its ring was stopped is stale: not a new sample.
    """

    def __init__(self, guest: AttachedGuest) -> None:
        self._guest = guest
        self._ring: StartedRing | None = None
        self._held: int | None = None
        self._stale = False
        self._requested = False
        self.sampled: Callable[[], None] = lambda: None
        """Called at each new sample."""
        self.updated = trio.Event()
        """Set at each new sample, and replaced by a new event."""

    async def drain(self, ring: StartedRing) -> None:
        """See ring.Processor."""
        self._ring = ring
        while (chain := await ring.pop()) is not None:
            if self._held is not None:  # a second buffer: the older one is no longer needed
                self._release(ring)
            stale, self._stale = self._stale, False
            if not stale:
                self._take_sample(chain)
            self._held = chain.head
            if stale or self._requested:
                self._release(ring)
            if ring.stopping:
                return
            # A guest may give buffers without end: let all other tasks run in between.
            await trio.lowlevel.cancel_shielded_checkpoint()

    def request(self) -> None:
        """Request a fresh sample: now, or as soon as the guest has given its buffer."""
        if self._held is not None and self._ring is not None:
            self._release(self._ring)
        else:
            self._requested = True

    async def fresh(self) -> None:
        """Request a sample and wait for it."""
        updated = self.updated
        self.request()
        await updated.wait()

    def expect_stale(self) -> None:
        """The process before this one held the guest's buffer: when it comes again, it is stale."""
        self._stale = True

    def forget(self) -> None:
        """A driver was loaded: its first buffer is a new sample."""
        self._stale = self._requested = False

    def detach(self) -> None:
        """See ring.Processor."""
        self._stale = self._stale or self._held is not None
        self._held, self._ring = None, None

    def _release(self, ring: StartedRing) -> None:
        assert self._held is not None
        head, self._held, self._requested = self._held, None, False
        self._guest.counters.requests[Queue.STATS] += 1
        ring.complete([head])

    def _take_sample(self, chain: Chain) -> None:
        """Any buffer is an answer, even if the guest knows nothing: so does QEMU take it."""
        tally = Tally()
        values, tail = parse_stats(self._read(chain, tally))
        tally.refuse(Refusal.ODD_TAIL, tail)
        if faults := tally.count_refused(self._guest.counters):
            self._guest.log.misbehaved(f"statistics buffer: {faults}")
        self._guest.balloon.stats.update(values, time.time(), clock.boottime())
        self.sampled()
        updated, self.updated = self.updated, trio.Event()
        updated.set()

    def _read(self, chain: Chain, tally: Tally) -> bytes:
        """The chain's device-readable bytes, which may be cut into descriptors anywhere."""
        data, left = bytearray(), 0
        for address, length, writable in chain.buffers:
            if writable:
                tally.add([(Refusal.DIRECTION, length)])
                continue
            room = min(length, MAX_STATS_SIZE - len(data))
            if room:
                data += self._guest.memory.read(address, room)
            left += length - room
        tally.refuse(Refusal.OVERSIZED, left)
        return bytes(data)

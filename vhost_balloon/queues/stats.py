"""The statistics queue: the guest's buffer is held, and using it is the question for a sample."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import trio

from protocol.virtio_balloon import Queue
from vhost_balloon.balloon.guest_stats import parse_stats
from vhost_balloon.figures.refusal import Refusal
from vhost_balloon.queues.attached_guest import AttachedGuest
from vhost_balloon.queues.ring import StartedRing
from vhost_balloon.queues.virtqueue import Chain

MAX_STATS_SIZE: Final = 4096
"""Bytes of a statistics buffer that are read; the 16 tags of today have 160."""

MAX_STATS_BUFFERS: Final = 16
"""Buffers of a chain that are read; drivers give one."""


class StatsProcessor:
    """Holds the guest's buffer until statistics are asked for; using it is the question.

    A buffer that is taken again after its ring was stopped is no new sample.
    """

    def __init__(self, device: AttachedGuest) -> None:
        self._device = device
        self._ring: StartedRing | None = None
        self._held: int | None = None
        self._stale = False
        self._wanted = False
        self.sampled: Callable[[], None] = lambda: None
        """Called at each new sample."""
        self.updated = trio.Event()
        """Set, and replaced by a new one, at each new sample."""

    async def drain(self, ring: StartedRing) -> None:
        self._ring = ring
        while (chain := await ring.pop()) is not None:
            if self._held is not None:  # two buffers: the older one is done with
                self._release(ring)
            stale, self._stale = self._stale, False
            if not stale:
                self._take_sample(chain)
            self._held = chain.head
            if stale or self._wanted:
                self._release(ring)
            if ring.stopping:
                return
            # A guest may give buffers without end: the others have their turn in between.
            await trio.lowlevel.cancel_shielded_checkpoint()

    def request(self) -> None:
        """Ask for a fresh sample: now, or as soon as the guest has given its buffer."""
        if self._held is not None and self._ring is not None:
            self._release(self._ring)
        else:
            self._wanted = True

    def resume(self) -> None:
        """Another process held the guest's buffer: it is no new sample when it comes again."""
        self._stale = True

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
        for address, length, writable in chain.buffers[:MAX_STATS_BUFFERS]:
            if writable:
                self._refuse(Refusal.DIRECTION, length)
                continue
            room = min(length, MAX_STATS_SIZE - len(data))
            data += self._device.memory.read(address, room)
            if room < length:
                self._refuse(Refusal.OVERSIZED, length - room)
        if len(chain.buffers) > MAX_STATS_BUFFERS:
            left = chain.buffers[MAX_STATS_BUFFERS:]
            self._refuse(Refusal.OVERSIZED, sum(buffer.length for buffer in left))
        values, tail = parse_stats(bytes(data))
        if tail:
            self._refuse(Refusal.ODD_TAIL, tail)
        if values:
            self._device.balloon.stats.update(values, time.time(), trio.current_time())
            self.sampled()
            updated, self.updated = self.updated, trio.Event()
            updated.set()

    def _refuse(self, reason: str, size: int) -> None:
        self._device.counters.refuse(reason, size)
        self._device.log.misbehaved(f"statistics buffer: {reason}")

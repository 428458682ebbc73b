"""TODO."""

from __future__ import annotations

import trio

from protocol.virtio_balloon import Queue
from vhost_balloon.figures.refusal import Refusal
from vhost_balloon.memory.discard import count_of, pieces, punch, size_of
from vhost_balloon.memory.gathering import Gathering
from vhost_balloon.memory.ranges import total
from vhost_balloon.memory.region import Part
from vhost_balloon.queues.decode import Named, page_buffers_size, pages, report_size, reported
from vhost_balloon.queues.processor import ChainProcessor, Tally, buffers_of, yield_to_others
from vhost_balloon.queues.ring import StartedRing
from vhost_balloon.queues.virtqueue import Chain


class DiscardProcessor(ChainProcessor):
    """Inflate and reporting: the guest gives pages away."""

    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        buffers = buffers_of(chains)
        is_report = self._queue is Queue.REPORTING
        slices = reported(buffers) if is_report else pages(buffers, self._device.memory.read)
        done, begun = Tally(), False
        for named in slices:
            if begun:
                await yield_to_others()
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
                await yield_to_others()
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

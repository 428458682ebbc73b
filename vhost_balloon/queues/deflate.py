"""The deflate queue: the guest takes pages back, and may use them once it has the answer."""

from __future__ import annotations

from typing import Final

import trio

from protocol.virtio_balloon import Queue
from vhost_balloon.figures.refusal import Refusal
from vhost_balloon.queues.decode import Slice, pages, pages_size
from vhost_balloon.queues.processor import ChainProcessor, Tally, yield_to_others
from vhost_balloon.queues.ring import StartedRing
from vhost_balloon.queues.virtqueue import Chain

_UNREAD: Final = {Refusal.LATE, Refusal.DIRECTION}
"""Refusals that leave PFNs unread, so that it is unknown which other pages the guest has back."""


class DeflateProcessor(ChainProcessor):
    """The guest only waits for the answer; nothing is done to its memory.

    Where huge pages are gathered, the pages leave the gathering before the answer. An inflate's
    piece that holds some of them has either been discarded before, or no longer will be.
    """

    queue = Queue.DEFLATE

    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        requests = [chain.buffers for chain in chains]
        tally, begun = Tally(), False
        memory = self._guest.memory
        for named in pages(requests, memory.read, gathered=memory.has_grids):
            if begun:
                await yield_to_others()
                if trio.current_time() >= deadline:
                    tally.refuse(Refusal.LATE, pages_size(requests) - tally.size)
                    break
            if ring.stopping:
                return None
            begun = True
            self._take_back(named, tally)
        if self._guest.gathering and _UNREAD & tally.refused.keys():
            self._guest.forget_gathered()
        return tally

    def _take_back(self, named: Slice, tally: Tally) -> None:
        memory, gathering = self._guest.memory, self._guest.gathering
        if gathering:
            for grid, taken in memory.gridded(named.ranges):
                gathering.remove(grid, taken)
        inside = memory.inside(named.ranges)
        tally.size += named.size
        tally.inside += inside
        tally.add(named.refusals)
        tally.refuse(Refusal.OUTSIDE, named.ranges.total() - inside)

    def _count(self, requests: int, tally: Tally) -> None:
        super()._count(requests, tally)
        self._guest.counters.deflated_bytes += tally.inside

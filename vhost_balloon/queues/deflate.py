"""The deflate queue: the guest takes pages back, and may use them once it has the answer."""

from __future__ import annotations

from typing import Final

import trio

from vhost_balloon.figures.refusal import Refusal
from vhost_balloon.memory.ranges import total
from vhost_balloon.queues.decode import Named, page_buffers_size, pages
from vhost_balloon.queues.processor import ChainProcessor, Tally, buffers_of, yield_to_others
from vhost_balloon.queues.ring import StartedRing
from vhost_balloon.queues.virtqueue import Chain

_UNREAD: Final = {Refusal.LATE, Refusal.DIRECTION}
"""Refusals that leave page numbers unread: nobody knows what else is the guest's again."""


class DeflateProcessor(ChainProcessor):
    """All that the guest waits for is the answer.

    Where huge pages are gathered, what is taken back leaves them before it. A piece of an inflate
    that holds some of it was discarded before this was looked at, or is not discarded any more.
    """

    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        buffers = buffers_of(chains)
        tally, begun = Tally(), False
        for named in pages(buffers, self._device.memory.read):
            if begun:
                await yield_to_others()
                if trio.current_time() >= deadline:
                    tally.refuse(Refusal.LATE, page_buffers_size(buffers) - tally.size)
                    break
            if ring.stopping:
                return None
            begun = True
            self._take_back(named, tally)
        if self._device.gathering and _UNREAD & tally.refused.keys():
            self._device.forget_gathered()
        return tally

    def _take_back(self, named: Named, tally: Tally) -> None:
        memory, gathering = self._device.memory, self._device.gathering
        if gathering:
            for grid, taken in memory.gridded(named.ranges):
                gathering.remove(grid, taken)
        inside = memory.inside(named.ranges)
        tally.size += named.size
        tally.inside += inside
        tally.add(named.refusals)
        tally.refuse(Refusal.OUTSIDE, total(named.ranges) - inside)

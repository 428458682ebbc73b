"""The deflate queue: the guest takes pages back, and may use them once it has the answer."""

from __future__ import annotations

from itertools import chain as joined
from typing import Final

import trio

from protocol.virtio_balloon import BALLOON_PAGE_SIZE, PFN_SHIFT
from vhost_balloon.decode import (
    MAX_SLICE_PFNS,
    STEP_GATHERED,
    merged,
    page_buffers_size,
    page_numbers,
)
from vhost_balloon.processors import ChainProcessor, Tally, add_up, buffers_of
from vhost_balloon.ranges import merge_numbers, total
from vhost_balloon.refusal import Refusal
from vhost_balloon.ring import StartedRing
from vhost_balloon.virtqueue import Chain

MAX_DEFLATED_PFNS: Final = 16384
"""Page numbers of deflate requests that are looked at; those beyond them count as late."""

_UNREAD: Final = {Refusal.LATE, Refusal.DIRECTION}
"""Refusals that leave page numbers unread: nobody knows what else is the guest's again."""


class DeflateProcessor(ChainProcessor):
    """All that the guest waits for is the answer, unless huge pages are gathered.

    What it names is read before the answer, because the guest uses its buffers again then, and
    looked at after it. What a chain names beyond MAX_DEFLATED_PFNS counts as late.

    Where huge pages are gathered, what is taken back leaves them before the answer; and if one is
    being discarded that it is part of, the answer waits for the end of that batch.
    """

    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        tally = Tally()
        begun, runs = False, False
        for step in page_numbers(buffers_of(chains), self._device.memory.read):
            if begun:
                await self._turn.others()
            if ring.stopping:
                return None
            begun = True
            runs |= await self._take_back(step.numbers)
            tally.numbers += step.numbers
            tally.add(step.refusals)
            if len(tally.numbers) >= MAX_DEFLATED_PFNS:
                break
        tally.size = len(tally.numbers) * BALLOON_PAGE_SIZE
        tally.refuse(Refusal.LATE, await add_up(page_buffers_size, chains, self._turn) - tally.size)
        if self._device.gathering and _UNREAD & tally.refused.keys():
            self._device.forget_gathered()
            runs = True
        if runs:
            await self._discarded()
        return tally

    async def _take_back(self, numbers: list[int]) -> bool:
        """Whether any of these pages is in a huge page that is being discarded."""
        device = self._device
        if not device.gathering:
            return False
        ranges = merge_numbers(numbers, PFN_SHIFT)
        runs = False
        for first in range(0, len(ranges), STEP_GATHERED):
            if first:
                await self._turn.others()
            for grid, pages in device.memory.gridded(ranges[first : first + STEP_GATHERED]):
                runs |= device.gathering.remove(grid, pages)
        return runs

    async def _discarded(self) -> None:
        """Wait for the batch that is being discarded. It may take long, but it is one at most."""
        with trio.CancelScope(shield=True):
            await self._device.discarded.wait()

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

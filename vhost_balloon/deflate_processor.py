"""The deflate queue: the guest takes pages back, and may use them once it has the answer."""

from __future__ import annotations

from itertools import chain as joined
from typing import Final

import trio

from protocol.virtio_balloon import BALLOON_PAGE_SIZE, PFN_SHIFT
from vhost_balloon.decode import (
    MAX_SLICE_PFNS,
    MAX_SLICE_RUNS,
    STEP_GATHERED,
    Numbers,
    merged,
    merged_runs,
    page_buffers_size,
    page_numbers,
)
from vhost_balloon.processors import ChainProcessor, Tally, add_up, buffers_of
from vhost_balloon.ranges import chunks, merge, merge_numbers, total
from vhost_balloon.refusal import Refusal
from vhost_balloon.ring import StartedRing
from vhost_balloon.virtqueue import Chain

MAX_DEFLATED_BYTES: Final = 16384 * BALLOON_PAGE_SIZE
"""Memory that deflate requests name whose page numbers are looked at; what is beyond counts as
late."""

_UNREAD: Final = {Refusal.LATE, Refusal.DIRECTION}
"""Refusals that leave page numbers unread: nobody knows what else is the guest's again."""


class DeflateProcessor(ChainProcessor):
    """All that the guest waits for is the answer, unless huge pages are gathered.

    What it names is read before the answer, because the guest uses its buffers again then, and
    looked at after it. What a chain names beyond MAX_DEFLATED_BYTES counts as late.

    Where huge pages are gathered, what is taken back leaves them before the answer; and if one is
    being discarded that it is part of, the answer waits for the end of that batch.
    """

    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        tally = Tally()
        begun = waits = False
        for step in page_numbers(buffers_of(chains), self._device.memory.read):
            if begun:
                await self._turn.others()
            if ring.stopping:
                return None
            begun = True
            waits |= await self._take_back(step)
            tally.runs += step.runs
            tally.numbers += step.numbers
            tally.add(step.refusals)
            tally.size += step.size
            if tally.size >= MAX_DEFLATED_BYTES:
                break
        tally.refuse(Refusal.LATE, await add_up(page_buffers_size, chains, self._turn) - tally.size)
        if self._device.gathering and _UNREAD & tally.refused.keys():
            self._device.forget_gathered()
            waits = True
        if waits:
            await self._discarded()
        return tally

    async def _take_back(self, step: Numbers) -> bool:
        """Whether any of these pages is in a huge page that is being discarded."""
        device = self._device
        if not device.gathering:
            return False
        ranges = merge(step.runs) or merge_numbers(step.numbers, PFN_SHIFT)
        found = False
        for number, some in enumerate(chunks(ranges, STEP_GATHERED)):
            if number:
                await self._turn.others()
            for grid, pages in device.memory.gridded(some):
                found |= device.gathering.remove(grid, pages)
        return found

    async def _discarded(self) -> None:
        """Wait for the batch that is being discarded. It may take long, but it is one at most."""
        with trio.CancelScope(shield=True):
            await self._device.discarded.wait()

    async def _count(self, requests: int, tally: Tally) -> None:
        runs = map(merged_runs, chunks(tally.runs, MAX_SLICE_RUNS))
        numbers = map(merged, chunks(tally.numbers, MAX_SLICE_PFNS))
        for number, ranges in enumerate(joined.from_iterable(joined(runs, numbers))):
            if number:
                await self._turn.others()
            inside = self._device.memory.inside(ranges)
            tally.inside += inside
            tally.refuse(Refusal.OUTSIDE, total(ranges) - inside)
        await super()._count(requests, tally)

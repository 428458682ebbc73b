"""The inflate and reporting queues: the guest gives memory away, and it is discarded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from itertools import chain as joined
from itertools import islice
from typing import ClassVar, Final

import trio

from protocol.virtio_balloon import Queue
from vhost_balloon.figures.refusal import Refusal
from vhost_balloon.memory.discard import PIECE_RANGES, pieces, punch
from vhost_balloon.memory.gathering import Gathering
from vhost_balloon.memory.region import Part
from vhost_balloon.memory.resolve import resolve
from vhost_balloon.queues.decode import (
    Requests,
    Slice,
    pages,
    pages_size,
    reported,
    reported_size,
)
from vhost_balloon.queues.processor import ChainProcessor, Tally, yield_to_others
from vhost_balloon.queues.ring import StartedRing
from vhost_balloon.queues.virtqueue import Chain

LATE_SLICES: Final = 8
"""Most slices to decode once it is too late to discard: some 15 ms. Drivers' requests have fewer.
"""


class DiscardProcessor(ChainProcessor):
    """Discards what requests name, slice by slice, and each slice piece by piece."""

    examines_late: ClassVar[bool]
    """Whether a late request's first slice is examined, so that other refusals count first."""

    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        requests = [chain.buffers for chain in chains]
        tally, begun = Tally(), False
        slices = iter(self._decode(requests))
        for named in slices:
            if begun:
                await yield_to_others()
            if ring.stopping:
                return None
            now = trio.current_time()  # anew: this process may have been stopped meanwhile
            if now >= deadline and (begun or not self.examines_late):
                tally.refuse(Refusal.LATE, self._named_size(requests) - tally.size)
                rest = islice(joined([named], slices), LATE_SLICES)
                return tally if await self._count_late(ring, rest, tally) else None
            begun = True
            if not await self._discard_slice(ring, named, now, deadline, tally):
                return None
            tally.size += named.size
            if named.refusals:
                tally.add(named.refusals)
        return tally

    async def _count_late(self, ring: StartedRing, slices: Iterable[Slice], tally: Tally) -> bool:
        """Count memory that the guest gave away, although it is too late to discard it. Returns
        False if the ring has to stop."""
        for named in slices:
            tally.inside += self._guest.memory.inside(named.ranges)
            await yield_to_others()
            if ring.stopping:
                return False
        return True

    @abstractmethod
    def _decode(self, requests: Requests) -> Iterable[Slice]:
        """The memory that requests name, in slices."""

    @abstractmethod
    def _named_size(self, requests: Requests) -> int:
        """Bytes of guest memory that requests name, without decoding them."""

    async def _discard_slice(
        self, ring: StartedRing, named: Slice, now: float, deadline: float, tally: Tally
    ) -> bool:
        """Discard a slice unless a rule keeps its memory. Returns False if the ring has to stop."""
        guest = self._guest
        guest.look_for_pins(now)
        refusal = self._refusal()
        if refusal is not None:
            tally.inside += guest.memory.inside(named.ranges)
            tally.refuse(refusal, named.ranges.total())
            return True
        gathering = self._gathering()
        found = resolve(guest.memory, named.ranges, guest.protected, guest.policy, gathering)
        tally.inside += found.inside
        if found.refused:
            tally.add(found.refused.items())
        if gathering is not None:
            guest.count_forgotten()
        left = sum([part.size for part in found.parts])
        others_wait = len(named.ranges) > PIECE_RANGES  # decoding took as long as a piece
        for piece in joined.from_iterable(map(pieces, found.parts)):
            if others_wait:
                await yield_to_others()
                if ring.stopping:
                    return False
            others_wait = True
            now = trio.current_time()  # anew, as above
            reason = Refusal.LATE if now >= deadline else self._over_limit(piece.size, now)
            if reason is not None:
                tally.refuse(reason, left)
                break
            left -= piece.size
            self._discard_piece(piece, gathering, tally)
        return True

    def _refusal(self) -> str | None:
        """Why nothing is discarded now, or None."""
        return self._guest.refusal()

    def _gathering(self) -> Gathering | None:
        """Where to keep partial huge pages until the rest of each comes; None to refuse them."""
        return None

    def _over_limit(self, size: int, now: float) -> str | None:
        """Why a piece of size bytes and all after it are only acknowledged, or None."""
        return None

    def _discard_piece(self, named: Part, gathering: Gathering | None, tally: Tally) -> None:
        """Discard a piece and count the result."""
        piece = named if gathering is None else self._guest.still_whole(named)
        if piece is None:
            return
        result = punch(piece)
        counters = self._guest.counters
        counters.freed_bytes += result.freed
        if gathering is not None and piece.region.grid is not None:
            counters.huge_pages_freed += result.freed // piece.region.page_size
        counters.discard_seconds.observe(result.seconds)
        if result.error is not None:
            tally.refuse(Refusal.FAILED, result.failed)
            self._guest.log.misbehaved(f"memory cannot be discarded: {result.error.strerror}")


class InflateProcessor(DiscardProcessor):
    """Pages that the guest puts into its balloon, named by PFNs."""

    queue = Queue.INFLATE
    examines_late = False

    def _decode(self, requests: Requests) -> Iterable[Slice]:
        memory = self._guest.memory
        return pages(requests, memory.read, gathered=memory.has_grids)

    def _named_size(self, requests: Requests) -> int:
        return pages_size(requests)

    def _gathering(self) -> Gathering | None:
        return self._guest.inflate_gathering()

    def _count(self, requests: int, tally: Tally) -> None:
        super()._count(requests, tally)
        self._guest.counters.inflated_bytes += tally.inside


class ReportProcessor(DiscardProcessor):
    """Free pages that the guest reports, and may use again once it has the answer."""

    queue = Queue.REPORTING
    examines_late = True

    def _decode(self, requests: Requests) -> Iterable[Slice]:
        return reported(requests)

    def _named_size(self, requests: Requests) -> int:
        return reported_size(requests)

    def _refusal(self) -> str | None:
        return self._guest.report_refusal()

    def _over_limit(self, size: int, now: float) -> str | None:
        limit = self._guest.report_limit
        if limit is None:
            return None
        if limit.is_spent(now):
            return Refusal.RATE
        limit.take(size, now)
        return None

    def _count(self, requests: int, tally: Tally) -> None:
        super()._count(requests, tally)
        self._guest.counters.reported_bytes += tally.inside

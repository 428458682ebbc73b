"""Base class of the processors: takes chains from a ring, serves them, uses and counts them.

Rules that all processors keep:
- A chain is used only after the discards that it stands for have finished.
- No chain is held longer than HOLD_LIMIT. What remains of a request by then, and a request that was
  found waiting for longer, is acknowledged without discarding.
- Work is done in the ring's own task, in pieces of some two milliseconds. Between two pieces
  everything else runs: messages, stops, other queues, the control socket. A ring that has to stop
  finishes the piece at hand and leaves the chain unused; serving it again later is harmless.
- A huge page that the guest gave in small pages is discarded only while no deflate names any part
  of it (see memory.gathering and queues.deflate).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Final

import trio

from protocol.virtio_balloon import Queue
from vhost_balloon.errors import RingError
from vhost_balloon.figures.counters import Counters
from vhost_balloon.figures.refusal import BY_RULE
from vhost_balloon.pace.wakefulness import HOLD_LIMIT
from vhost_balloon.queues.attached_guest import AttachedGuest
from vhost_balloon.queues.ring import StartedRing
from vhost_balloon.queues.virtqueue import Chain

MAX_TAKEN_BUFFERS: Final = 128
"""Chains are taken together, so that their ranges merge, until they have this many buffers."""

WORK_LIMIT: Final = HOLD_LIMIT - 0.05
"""Seconds after which a request's discards end; the rest is for the last piece and the answer."""

yield_to_others: Final = trio.lowlevel.cancel_shielded_checkpoint
"""Lets all other tasks run. Shielded, because a request is either finished or left untouched."""


async def take(ring: StartedRing) -> tuple[list[Chain], RingError | None]:
    """Pop chains up to MAX_TAKEN_BUFFERS. A broken chain's error comes with those before it."""
    queue = ring.virtqueue
    chains = queue.pop_plain(MAX_TAKEN_BUFFERS)
    room = MAX_TAKEN_BUFFERS - len(chains)
    try:
        while room > 0 and queue.pending():
            chain = await ring.pop()
            if chain is None:
                break
            chains.append(chain)
            room -= len(chain.buffers)
    except RingError as error:
        return chains, error
    return chains, None


@dataclass(slots=True)
class Tally:
    """The result of a request. It is counted only when the request is complete, because a request
    that is left unused comes again.

    size: bytes named. inside: those of them that are guest memory. refused: by reason, the bytes
    refused and how often.
    """

    size: int = 0
    inside: int = 0
    refused: dict[str, tuple[int, int]] = field(default_factory=dict)

    def refuse(self, reason: str, size: int) -> None:
        if size:
            self.add([(reason, size)])

    def add(self, refusals: Iterable[tuple[str, int]]) -> None:
        for reason, size in refusals:
            refused, times = self.refused.get(reason, (0, 0))
            self.refused[reason] = refused + size, times + 1

    def count_refused(self, counters: Counters) -> str:
        """Count what was refused. Returns the reasons that are the guest's fault, as text."""
        for reason, (refused, times) in self.refused.items():
            counters.refuse(reason, refused, times)
        return ", ".join(sorted(self.refused.keys() - BY_RULE))


class ChainProcessor(ABC):
    """Takes several chains at once, serves them, and uses them."""

    queue: ClassVar[Queue]

    def __init__(self, guest: AttachedGuest) -> None:
        self._guest = guest

    async def drain(self, ring: StartedRing) -> None:
        """See ring.Processor."""
        looked = trio.current_time()
        ring.waiting_since = min(ring.waiting_since, looked - self._guest.wakefulness.waited())
        while True:
            chains, error = await take(ring)
            if ring.stopping:
                return
            if chains:
                tally = await self._serve(ring, chains, ring.waiting_since + WORK_LIMIT)
                if tally is None:
                    return
                ring.complete([chain.head for chain in chains])
                self._count(len(chains), tally)  # after the answer, which the guest waits for
            if error is not None:
                raise error
            if not ring.virtqueue.pending():
                ring.waiting_since = math.inf
                return
            if sum([len(chain.buffers) for chain in chains]) < MAX_TAKEN_BUFFERS:
                ring.waiting_since = looked  # the ring was empty then: what waits is newer
            await yield_to_others()
            looked = trio.current_time()

    @abstractmethod
    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        """Do what the chains ask for. Returns None if the ring has to stop before that is done.

        deadline: when discards end, by trio's clock.
        """

    def _count(self, requests: int, tally: Tally) -> None:
        """Count used chains and their result."""
        counters = self._guest.counters
        self._guest.counted()
        counters.requests[self.queue] += requests
        if tally.refused and (faults := tally.count_refused(counters)):
            self._guest.log.misbehaved(f"{self.queue.value}: not discarded: {faults}")

    def detach(self) -> None:  # noqa: B027 - no state is kept between two drains
        """See ring.Processor."""


class HintProcessor(ChainProcessor):
    """Free page hints: acknowledged, never acted on, because a guest may take a hinted page back
    at any time.

    A correct driver sends none, since free_page_hint_cmd_id stays at STOP.
    """

    queue = Queue.FREE_PAGE

    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        return Tally()

"""What each kind of queue does with its chains.

Rules kept here:
- A chain is used only after the discards that it stands for have finished.
- No chain is held for longer than HOLD_LIMIT: what is left of it then, or what was found waiting
  for longer than that, is acknowledged without being discarded.
- All is done in place, in pieces of some two milliseconds. Between two pieces everything else has
  its turn: messages, a stop, the other queues, the control socket. A ring that is to stop gets to
  the end of its piece; the chain is left unused, and doing it again later is harmless.
- A huge page that was given in small ones is discarded only while no deflate named any of it (see
  gathering, deflate_processor).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain as joined
from typing import Final

import trio

from protocol.virtio_balloon import Queue
from vhost_balloon.errors import RingError
from vhost_balloon.figures.refusal import BY_RULE
from vhost_balloon.pace.wakefulness import HOLD_LIMIT
from vhost_balloon.queues.attached_guest import AttachedGuest
from vhost_balloon.queues.ring import StartedRing
from vhost_balloon.queues.virtqueue import Buffer, Chain

MAX_TAKEN_BUFFERS: Final = 128
"""Chains are taken together, so that their ranges merge, up to so many buffers."""

WORK_LIMIT: Final = HOLD_LIMIT - 0.05
"""When to stop discarding for a request: a last piece and its answer come after it."""

yield_to_others: Final = trio.lowlevel.cancel_shielded_checkpoint
"""Lets everything else have its turn. A request is finished or left as it was, so nothing is
cancelled here."""


async def take(ring: StartedRing) -> tuple[list[Chain], RingError | None]:
    """Pop chains up to MAX_TAKEN_BUFFERS. A broken one is reported after those before it."""
    chains: list[Chain] = []
    room = MAX_TAKEN_BUFFERS
    try:
        while room > 0:
            chain = ring.virtqueue.pop_plain() or await ring.pop()
            if chain is None:
                break
            chains.append(chain)
            room -= len(chain.buffers)
    except RingError as error:
        return chains, error
    return chains, None


@dataclass(slots=True)
class Tally:
    """What a request came to, counted once it is complete: one that is left will come again.

    size: bytes named. inside: of these, the bytes inside memory. refused: bytes that were refused,
    and how often, by reason.
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


class ChainProcessor(ABC):
    """Takes chains together, serves them, uses them."""

    def __init__(self, device: AttachedGuest, queue: Queue) -> None:
        self._device = device
        self._queue = queue

    async def drain(self, ring: StartedRing) -> None:
        since = trio.current_time() - self._device.wakefulness.waited()
        ring.waiting_since = min(ring.waiting_since, since)
        while True:
            looked = trio.current_time()
            chains, error = await take(ring)
            if ring.stopping:
                return
            if chains:
                tally = await self._serve(ring, chains, ring.waiting_since + WORK_LIMIT)
                if tally is None:
                    return
                ring.complete([chain.head for chain in chains])
                self._count(len(chains), tally)  # the guest does not wait for this
            if error is not None:
                raise error
            if not ring.virtqueue.pending():
                ring.waiting_since = math.inf
                return
            if sum([len(chain.buffers) for chain in chains]) < MAX_TAKEN_BUFFERS:
                ring.waiting_since = looked  # all there was had been taken: these came later
            await yield_to_others()

    @abstractmethod
    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        """Do what the chains ask for; None if the ring is to stop before it was done."""

    def _count(self, requests: int, tally: Tally) -> None:
        """Count chains that were used, and what they came to."""
        counters = self._device.counters
        self._device.counted()
        counters.requests[self._queue] += requests
        match self._queue:
            case Queue.INFLATE:
                counters.inflated_bytes += tally.inside
            case Queue.DEFLATE:
                counters.deflated_bytes += tally.inside
            case Queue.REPORTING:
                counters.reported_bytes += tally.inside
        if not tally.refused:
            return
        for reason, (refused, times) in tally.refused.items():
            counters.refuse(reason, refused, times)
        faults = tally.refused.keys() - BY_RULE
        if faults:
            text = ", ".join(sorted(faults))
            self._device.log.misbehaved(f"{self._queue.value}: not discarded: {text}")

    def detach(self) -> None:
        """See Processor."""


def buffers_of(chains: list[Chain]) -> Sequence[Buffer]:
    return (
        chains[0].buffers
        if len(chains) == 1
        else list(joined.from_iterable(chain.buffers for chain in chains))
    )


class HintProcessor(ChainProcessor):
    """Free page hints: acknowledged, never acted on.

    A guest may take a hinted page back before we could act. The command id stays at STOP, so a
    correct driver sends nothing here.
    """

    async def _serve(self, ring: StartedRing, chains: list[Chain], deadline: float) -> Tally | None:
        return Tally()

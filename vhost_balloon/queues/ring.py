"""A started ring: a virtqueue bound to guest memory, its eventfds, and the task that serves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from protocol.virtio_balloon import Queue
from protocol.virtio_ring import (
    available_ring_size,
    descriptor_table_size,
    used_ring_size,
)
from vhost_balloon.errors import FrontEndError, RingError, RingErrorReason
from vhost_balloon.fds import EventFd, Kick
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.memory.ranges import Range, align_outward
from vhost_balloon.memory.region import GuestRegion, MappedRegion
from vhost_balloon.pace.polling import Polling
from vhost_balloon.queues.virtqueue import Chain, Virtqueue
from vhost_balloon.session.effects import RingSetup

_LOOKS: Final = 16
"""A look at a ring takes 0.3 us."""


@dataclass(slots=True)
class BoundRing:
    """A virtqueue over views of guest memory, and the guest ranges and regions that it lies in."""

    virtqueue: Virtqueue
    ranges: list[Range]
    regions: list[MappedRegion]


def bind(setup: RingSetup, base: int, memory: GuestMemory) -> BoundRing:
    """Bind a queue to guest memory, starting at available index base.

    Raises FrontEndError if a part of it is outside memory.
    """
    address = setup.address
    parts = (
        (address.descriptor, descriptor_table_size(setup.size)),
        (address.available, available_ring_size(setup.size)),
        (address.used, used_ring_size(setup.size)),
    )
    found = [(*memory.find_user(start, size), size) for start, size in parts]
    ranges = []
    for mapped, offset, size in found:
        start = mapped.guest_start + offset
        ranges.append(align_outward(start, start + size, mapped.page_size))
    views: list[memoryview] = []
    try:
        for mapped, offset, size in found:
            views.append(mapped.view(offset, size))
    except FrontEndError:
        for view in views:
            view.release()
        raise
    descriptors, available, used = views
    queue = Virtqueue(setup.size, descriptors, available, used, base, memory.read)
    return BoundRing(queue, ranges, [mapped for mapped, _, _ in found])


def stand_in(setup: RingSetup, base: int) -> BoundRing:
    """A queue for a broken ring whose memory may be gone. Only its base is used."""
    descriptors = memoryview(bytearray(descriptor_table_size(setup.size)))
    available = memoryview(bytearray(available_ring_size(setup.size)))
    used = memoryview(bytearray(used_ring_size(setup.size)))
    queue = Virtqueue(setup.size, descriptors, available, used, base, _no_memory)
    return BoundRing(queue, [], [])


def _no_memory(address: int, length: int) -> bytes:
    raise RingError(RingErrorReason.MEMORY, "its memory was removed")


Broke = Callable[["StartedRing", RingError], None]


class Processor(Protocol):
    """Serves one kind of queue."""

    async def drain(self, ring: StartedRing) -> None:
        """Serve all available chains, or return early if ring.stopping. Raises RingError.

        A request is either finished or left untouched, never cancelled halfway.
        """

    def detach(self) -> None:
        """The ring's task has ended. Chains that were taken but not used come again later."""


class StartedRing:
    """A ring from SET_VRING_KICK to GET_VRING_BASE. It is active while a task serves it."""

    def __init__(
        self,
        index: int,
        setup: RingSetup,
        bound: BoundRing,
        kick: Kick,
        polling: Polling | None = None,
    ) -> None:
        self.index = index
        self.setup = setup
        self._bound = bound
        self.kick = kick
        self.call: EventFd | None = None
        self.queue: Queue | None = None
        self.broken: RingError | None = None
        self.requests = 0
        self.stopping = False
        self.waiting_since = trio.current_time()
        """The earliest time at which the oldest unused request may have been made. Infinite while
        an active ring is empty."""
        self._polling = Polling() if polling is None else polling
        self._scope = trio.CancelScope()
        self._ended: trio.Event | None = None
        self._processor: Processor | None = None

    @property
    def virtqueue(self) -> Virtqueue:
        return self._bound.virtqueue

    @property
    def ranges(self) -> list[Range]:
        """The guest ranges that the ring's parts lie in."""
        return self._bound.ranges

    def activate(
        self, nursery: trio.Nursery, queue: Queue, processor: Processor, broke: Broke
    ) -> None:
        """Start the task. broke is called if the guest breaks the ring."""
        self.queue, self._processor = queue, processor
        self._scope, self._ended = trio.CancelScope(), trio.Event()
        nursery.start_soon(self._serve, processor, broke, self._scope, self._ended)

    async def pop(self) -> Chain | None:
        """The next chain, or None if there is none or the ring has to stop. All other tasks run
        between the steps of a long chain. Raises RingError."""
        for popped in self.virtqueue.popping():
            if popped is not None:
                return popped
            await trio.lowlevel.cancel_shielded_checkpoint()
            if self.stopping:
                break
        return None

    async def deactivate(self) -> None:
        """End the task after the piece of work at hand. Unused chains are kept for later."""
        if self._ended is None:
            return
        self.stopping = True
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()
        self.stopping = False
        self.waiting_since = min(self.waiting_since, trio.current_time())
        self.queue, self._ended = None, None
        self.virtqueue.rewind()
        if self._processor is not None:
            self._processor.detach()

    async def _serve(
        self, processor: Processor, broke: Broke, scope: trio.CancelScope, ended: trio.Event
    ) -> None:
        try:
            with scope:
                while True:
                    await processor.drain(self)
                    if self.stopping:
                        return
                    if await self._polling.finds(self._has_requests, _LOOKS):
                        continue  # before its kick, or after: that is taken before the next sleep
                    self.kick.take()
                    if self._has_requests():
                        # A guest that times its requests must not keep all others waiting.
                        await trio.lowlevel.checkpoint()
                    else:
                        await self.kick.wait()
                        self._polling.asked()
        except RingError as error:
            processor.detach()  # so that nothing else is written to this ring
            broke(self, error)
        finally:
            ended.set()

    def _has_requests(self) -> bool:
        return self.virtqueue.pending() > 0

    def complete(self, heads: list[int]) -> None:
        """Use these chains, in the order in which they were taken, and notify the driver."""
        for head in heads:
            self.virtqueue.push(head)
        self.virtqueue.publish()
        self.requests += len(heads)
        self.notify()
        if self.queue is not Queue.STATS:  # a used buffer is a question there, and has time
            self._polling.answered(self.queue)

    def notify(self) -> None:
        if self.call is not None:
            self.call.signal()

    def lies_in(self, mapped: GuestRegion) -> bool:
        return any(region is mapped for region in self._bound.regions)

    def rebind(self, bound: BoundRing) -> None:
        """Move to new mappings. Not while active."""
        self._bound.virtqueue.release()
        self._bound = bound

    def unbind(self) -> None:
        """Release the views of a broken ring whose memory is removed. Not while active."""
        self._bound.virtqueue.release()
        self._bound.ranges = []

    def close(self) -> None:
        self._bound.virtqueue.release()
        self.kick.close()

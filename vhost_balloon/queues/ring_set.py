"""All rings of one front end: which are started, what each carries, which tasks run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import trio

from protocol.virtio_balloon import OPTIONAL_QUEUES, Queue
from vhost_balloon.balloon.queue_map import map_queues
from vhost_balloon.errors import FrontEndError, RingError, RingErrorReason
from vhost_balloon.fds import EventFd, Kick, OwnedFd
from vhost_balloon.figures.statistics import QueueStatistics
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.memory.region import MappedRegion
from vhost_balloon.queues.attached_guest import AttachedGuest
from vhost_balloon.queues.deflate import DeflateProcessor
from vhost_balloon.queues.discarding import DiscardProcessor
from vhost_balloon.queues.processor import HintProcessor
from vhost_balloon.queues.ring import BoundRing, Processor, StartedRing, bind
from vhost_balloon.queues.stats import StatsProcessor
from vhost_balloon.session.effects import RingSetup
from vhost_balloon.session.session import Session

QUEUE_MAP_PATIENCE: Final = 1.0
"""Seconds after the last start until queues that cannot be told apart are complained about."""


def _kick(fd: OwnedFd) -> Kick:
    """Raises FrontEndError if the descriptor is no eventfd or cannot be waited for."""
    try:
        return Kick(fd)
    except OSError as error:
        raise FrontEndError(f"kick cannot be waited for: {error.strerror}") from None


class RingSet:
    """The started rings, and the eventfds that may come before a start.

    nursery is where the rings' tasks live; it ends after this object was closed. calls and errs
    are the eventfds by ring, of rings that are not started too.
    """

    def __init__(self, device: AttachedGuest, session: Session, nursery: trio.Nursery) -> None:
        self.rings: dict[int, StartedRing] = {}
        self.map_ambiguous = False
        self.ring_broke: Callable[[], None] = lambda: None
        """Called after a ring was stopped for good."""
        self.stats: Final = StatsProcessor(device)
        self._device = device
        self._session = session
        self._nursery = nursery
        self.calls: dict[int, EventFd] = {}
        self.errs: dict[int, EventFd] = {}
        self._map_timer = trio.CancelScope()
        self._processors: dict[Queue, Processor] = {
            Queue.INFLATE: DiscardProcessor(device, Queue.INFLATE),
            Queue.DEFLATE: DeflateProcessor(device, Queue.DEFLATE),
            Queue.REPORTING: DiscardProcessor(device, Queue.REPORTING),
            Queue.FREE_PAGE: HintProcessor(device, Queue.FREE_PAGE),
            Queue.STATS: self.stats,
        }

    # Single rings

    async def start(self, index: int, kick: OwnedFd, setup: RingSetup) -> None:
        """Start a ring; update() lets it run. Raises FrontEndError.

        A discard that runs was planned when this ring was no ring, and could take its pages.
        """
        own_kick = _kick(kick)
        await self.pause()
        try:
            bound = bind(setup, setup.base, self._device.memory)
        except FrontEndError:
            await self.apply()
            raise
        ring = self.rings[index] = StartedRing(index, setup, bound, own_kick)
        ring.call = self.calls.get(index)
        self._protect()
        self._watch_queue_map()

    async def stop(self, index: int) -> int:
        """Stop a ring and return the index of its first chain that was not used."""
        ring = self.rings[index]
        await ring.deactivate()
        del self.rings[index]
        base = ring.virtqueue.base
        ring.close()
        self._protect()
        return base

    async def set_kick(self, index: int, fd: OwnedFd) -> None:
        """Replace a started ring's kick; update() lets it run again. Raises FrontEndError."""
        kick = _kick(fd)
        ring = self.rings[index]
        await ring.deactivate()
        ring.kick.close()
        ring.kick = kick

    def set_call(self, index: int, fd: OwnedFd | None) -> None:
        """Raises FrontEndError if the descriptor is no eventfd."""
        self._replace(self.calls, index, fd)
        if index in self.rings:
            self.rings[index].call = self.calls.get(index)
            # What was used before the driver listened here must not be waited for in vain.
            self.rings[index].notify()

    def set_err(self, index: int, fd: OwnedFd | None) -> None:
        """Raises FrontEndError if the descriptor is no eventfd."""
        self._replace(self.errs, index, fd)

    def _replace(self, eventfds: dict[int, EventFd], index: int, fd: OwnedFd | None) -> None:
        new = None if fd is None else EventFd(fd)
        old = eventfds.pop(index, None)
        if old is not None:
            old.close()
        if new is not None:
            eventfds[index] = new

    def resume(
        self, index: int, setup: RingSetup, bound: BoundRing, kick: Kick, broken: str | None
    ) -> None:
        """Go on with a ring that another process served; update() lets it run.

        What is found waiting may have waited too long. The driver is told once, because that
        process may have died between using a request and saying so.
        """
        ring = self.rings[index] = StartedRing(index, setup, bound, kick)
        ring.call = self.calls.get(index)
        ring.waiting_since = -math.inf
        if broken is not None:
            ring.broken = RingError(RingErrorReason(broken), "before a restart")
        ring.notify()
        self._protect()
        self._watch_queue_map()

    # All rings

    async def apply(self) -> None:
        """Judge again which rings run and what each carries; let their tasks follow.

        It follows every change of rings, features and memory, so what inflate gathered ends here.
        """
        self._device.forget_gathered()
        queue_map = map_queues(self._session.features, self.rings)
        if not self.rings or not queue_map.ambiguous:
            self.map_ambiguous = False
        for index, ring in self.rings.items():
            queue = queue_map.queues.get(index)
            if not self._session.is_enabled(index) or ring.broken is not None:
                queue = None
            if ring.queue is queue:
                continue
            await ring.deactivate()
            if queue is not None:
                ring.activate(self._nursery, queue, self._processors[queue], self._broke)

    async def pause(self) -> None:
        """End all tasks, each after its piece at hand; update() lets them run again."""
        for ring in self.rings.values():
            await ring.deactivate()

    def plan(self, memory: GuestMemory) -> dict[int, BoundRing]:
        """Lay all started rings over other memory. Raises FrontEndError if one does not fit."""
        plan: dict[int, BoundRing] = {}
        try:
            for index, ring in self.rings.items():
                if ring.broken is None:
                    plan[index] = bind(ring.setup, ring.virtqueue.base, memory)
        except FrontEndError:
            for bound in plan.values():
                bound.virtqueue.release()
            raise
        return plan

    def rebind(self, plan: dict[int, BoundRing]) -> None:
        """Move all rings to what plan() made; broken ones give up theirs. Not while they run."""
        for index, ring in self.rings.items():
            if index in plan:
                ring.rebind(plan[index])
            else:
                ring.unbind()
        self._protect()

    def drop_region(self, mapped: MappedRegion) -> None:
        """Stop for good every ring that lies in a region that goes. Not while they run."""
        for ring in self.rings.values():
            if not ring.lies_in(mapped):
                continue
            if ring.broken is None:
                self._broke(ring, RingError(RingErrorReason.MEMORY, "its memory was removed"))
            ring.unbind()  # a ring that broke before holds on to its memory too
        self._protect()

    async def close(self) -> None:
        """Stop everything and close all descriptors."""
        self._map_timer.cancel()
        for index in list(self.rings):
            await self.stop(index)
        for eventfd in (*self.calls.values(), *self.errs.values()):
            eventfd.close()

    def _protect(self) -> None:
        self._device.protect(r for ring in self.rings.values() for r in ring.ranges)

    def _broke(self, ring: StartedRing, error: RingError) -> None:
        """A ring's structure is broken: it stays as it is until the driver sets it up again."""
        queue = "ring" if ring.queue is None else ring.queue.value
        ring.broken = error
        self._device.forget_gathered()
        self._device.counters.ring_errors[queue, error.reason] += 1
        self._device.counted()
        self._device.log.misbehaved(f"{queue} (ring {ring.index}) stopped: {error}")
        if ring.index in self.errs:
            self.errs[ring.index].signal()
        self.ring_broke()

    def statistics(self) -> tuple[QueueStatistics, ...]:
        return tuple(
            QueueStatistics(
                index=index,
                queue=ring.queue,
                size=ring.setup.size,
                started=True,
                enabled=self._session.is_enabled(index),
                broken=None if ring.broken is None else ring.broken.reason.value,
                requests=ring.requests,
            )
            for index, ring in sorted(self.rings.items())
        )

    # The queue map

    def _watch_queue_map(self) -> None:
        """Complain if the optional queues still cannot be told apart a while after this start."""
        self._map_timer.cancel()
        self._map_timer = trio.CancelScope()
        self._nursery.start_soon(self._check_queue_map, self._map_timer)

    async def _check_queue_map(self, scope: trio.CancelScope) -> None:
        with scope:
            await trio.sleep(QUEUE_MAP_PATIENCE)
            features = self._session.features
            if self.rings and map_queues(features, self.rings).ambiguous:
                self.map_ambiguous = True
                names = [queue.value for bit, queue in OPTIONAL_QUEUES if features & bit]
                self._device.log.misbehaved(
                    f"started rings {sorted(self.rings)} do not fit the negotiated optional "
                    f"queues ({', '.join(names) or 'none'}); they are left unread"
                )

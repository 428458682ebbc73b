"""All rings of one front end: which are started, which queue each carries, which tasks run."""

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
from vhost_balloon.memory.region import GuestRegion
from vhost_balloon.queues.attached_guest import AttachedGuest
from vhost_balloon.queues.deflate import DeflateProcessor
from vhost_balloon.queues.discarding import InflateProcessor, ReportProcessor
from vhost_balloon.queues.processor import HintProcessor
from vhost_balloon.queues.ring import BoundRing, Processor, StartedRing, bind
from vhost_balloon.queues.stats import StatsProcessor
from vhost_balloon.session.effects import RingSetup
from vhost_balloon.session.session import Session

QUEUE_MAP_PATIENCE: Final = 1.0
"""Seconds after the last start until an ambiguous queue map is logged."""


def _kick(fd: OwnedFd) -> Kick:
    """Raises FrontEndError if the descriptor is no eventfd or cannot be polled."""
    try:
        return Kick(fd)
    except OSError as error:
        raise FrontEndError(f"cannot wait for the kick: {error.strerror}") from None


class RingSet:
    """The started rings, and the eventfds that may come before a start.

    nursery: the rings' tasks run in it; it must end after close(). calls, errs: the eventfds by
    ring, including those of rings that are not started.
    """

    def __init__(self, guest: AttachedGuest, session: Session, nursery: trio.Nursery) -> None:
        self.rings: dict[int, StartedRing] = {}
        self.map_ambiguous = False
        self.ring_broke: Callable[[], None] = lambda: None
        """Called after a ring was stopped because its structure is broken."""
        self.stats: Final = StatsProcessor(guest)
        self._guest = guest
        self._session = session
        self._nursery = nursery
        self.calls: dict[int, EventFd] = {}
        self.errs: dict[int, EventFd] = {}
        self._map_timer = trio.CancelScope()
        self._processors: dict[Queue, Processor] = {
            Queue.INFLATE: InflateProcessor(guest),
            Queue.DEFLATE: DeflateProcessor(guest),
            Queue.REPORTING: ReportProcessor(guest),
            Queue.FREE_PAGE: HintProcessor(guest),
            Queue.STATS: self.stats,
        }

    # Single rings

    async def start(self, index: int, kick: OwnedFd, setup: RingSetup) -> None:
        """Start a ring; apply() lets it run. Raises FrontEndError.

        Pauses all rings: a running discard was planned without this ring, and could discard its
        pages.
        """
        own_kick = _kick(kick)
        await self.pause()
        try:
            bound = bind(setup, setup.base, self._guest.memory)
        except FrontEndError:
            await self.apply()
            raise
        ring = self.rings[index] = StartedRing(index, setup, bound, own_kick, self._guest.polling)
        ring.call = self.calls.get(index)
        self._protect()
        self._watch_queue_map()

    async def stop(self, index: int) -> int:
        """Stop a ring and return the available index of its first unused chain."""
        ring = self.rings[index]
        await ring.deactivate()
        del self.rings[index]
        base = ring.virtqueue.base
        ring.close()
        self._protect()
        return base

    async def set_kick(self, index: int, fd: OwnedFd) -> None:
        """Replace a started ring's kick; apply() lets it run again. Raises FrontEndError."""
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
            # Chains may have been used before the driver listened on this eventfd.
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

    def take_over(
        self, index: int, setup: RingSetup, bound: BoundRing, kick: Kick, broken: str | None
    ) -> None:
        """Take over a ring that the process before this one served; apply() lets it run.

        Requests that wait may have waited too long. The driver is notified once, because that
        process may have died between using a request and notifying the driver.
        """
        ring = self.rings[index] = StartedRing(index, setup, bound, kick, self._guest.polling)
        ring.call = self.calls.get(index)
        ring.waiting_since = -math.inf
        if broken is not None:
            ring.broken = RingError(RingErrorReason(broken), "before a restart")
        ring.notify()
        self._protect()
        self._watch_queue_map()

    # All rings

    async def apply(self) -> None:
        """Determine which rings run and which queue each carries; start and end tasks accordingly.

        To be called after every change of rings, features or memory. Forgets gathered pages.
        """
        self._guest.forget_gathered()
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
        """End all tasks, each after its piece at hand; apply() lets them run again."""
        for ring in self.rings.values():
            await ring.deactivate()

    def plan(self, memory: GuestMemory) -> dict[int, BoundRing]:
        """Bind all started rings to other memory. Raises FrontEndError if one does not fit."""
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
        """Move all rings to plan()'s memory; broken ones release theirs. Not while they run."""
        for index, ring in self.rings.items():
            if index in plan:
                ring.rebind(plan[index])
            else:
                ring.unbind()
        self._protect()

    def drop_region(self, mapped: GuestRegion) -> None:
        """Break every ring that lies in a region to be removed. Not while they run."""
        for ring in self.rings.values():
            if not ring.lies_in(mapped):
                continue
            if ring.broken is None:
                self._broke(ring, RingError(RingErrorReason.MEMORY, "its memory was removed"))
            ring.unbind()  # also rings that broke before: they still borrow the memory
        self._protect()

    async def close(self) -> None:
        """Stop everything and close all descriptors."""
        self._map_timer.cancel()
        for index in list(self.rings):
            await self.stop(index)
        for eventfd in (*self.calls.values(), *self.errs.values()):
            eventfd.close()

    def _protect(self) -> None:
        self._guest.protect(r for ring in self.rings.values() for r in ring.ranges)

    def _broke(self, ring: StartedRing, error: RingError) -> None:
        """Stop serving a ring whose structure is broken, until the driver sets it up again."""
        queue = "ring" if ring.queue is None else ring.queue.value
        ring.broken = error
        self._guest.forget_gathered()
        self._guest.counters.ring_errors[queue, error.reason] += 1
        self._guest.counted()
        self._guest.log.misbehaved(f"{queue} (ring {ring.index}) stopped: {error}")
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
        """Log it if the queue map is still ambiguous QUEUE_MAP_PATIENCE after this start."""
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
                self._guest.log.misbehaved(
                    f"started rings {sorted(self.rings)} do not match the negotiated optional "
                    f"queues ({', '.join(names) or 'none'}); they are left unread"
                )

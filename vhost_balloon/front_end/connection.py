"""One attached front end, from its connection to its end: messages, target, statistics.

The session decides what a message means, carrying_out.py does it, and the keeper puts it on record.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import trio

from vhost_balloon import clock
from vhost_balloon.balloon.device import Balloon
from vhost_balloon.errors import CommandError, FrontEndError, StreamError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.figures.statistics import VmState
from vhost_balloon.front_end.carrying_out import EffectExecutor
from vhost_balloon.front_end.conversation import Conversation
from vhost_balloon.front_end.keeper import Keeper
from vhost_balloon.front_end.making_way import SILENT, make_way
from vhost_balloon.front_end.orders import Orders
from vhost_balloon.front_end.parts import LeftConnection, Parts
from vhost_balloon.front_end.transport import Transport
from vhost_balloon.memory.pin_guard import PinGuard
from vhost_balloon.pace.rate import REPORT_BURST, Bucket
from vhost_balloon.queues.attached_guest import AttachedGuest
from vhost_balloon.queues.ring_set import RingSet
from vhost_balloon.session import requests
from vhost_balloon.session.message import Message
from vhost_balloon.session.session import Session
from vhost_balloon.vm.settings import VmSettings
from vhost_balloon.vm.snapshot import VmStatistics
from vhost_balloon.vm.vm import Vm


async def serve_front_end(vm: Vm, fd: OwnedFd, name: str, *, peer_connected: bool = True) -> None:
    """Serve the front end at the other end of a connected socket until it goes, then clean up.

    name: the socket's name in the store. peer_connected: whether the front end's own process made
    the connection. If the socket was handed to it, the kernel reports the process that connected,
    and pinned memory cannot be detected.
    """
    transport = Transport(fd, vm.shelf, vm.journal, vm.pipe)
    session = _new_session(vm.settings)
    await run_connection(vm, transport, session, name, peer_connected, _attach)


def _new_session(settings: VmSettings) -> Session:
    return Session(Balloon(settings.target), settings.offered)


async def _attach(connection: FrontEndConnection) -> None:
    connection.attach()


Prepare = Callable[["FrontEndConnection"], Awaitable[None]]


async def run_connection(
    vm: Vm,
    transport: Transport,
    session: Session,
    name: str,
    peer_connected: bool,
    prepare: Prepare,
) -> None:
    """Serve a connection until its front end goes; prepare() runs before the first message.

    If this process ends first, the stored state stays for the next one.
    """
    try:
        async with trio.open_nursery() as nursery:
            connection = FrontEndConnection(vm, transport, session, name, nursery, peer_connected)
            await prepare(connection)
            vm.front_end = connection
            vm.status_changed.set()
            await connection.serve()
            nursery.cancel_scope.cancel()
    except Exception:
        vm.crashed()
        raise
    finally:
        vm.front_end = None
        transport.close()
    connection.keeper.ended()
    await vm.forget_front_end(name)
    connection.gone.set()
    vm.status_changed.set()
    vm.log.info("front end gone")


def _report_limit(rate: int | None) -> Bucket | None:
    return None if rate is None else Bucket(rate, rate * REPORT_BURST)


class FrontEndConnection:
    """One connection; its tasks run in nursery."""

    def __init__(
        self,
        vm: Vm,
        transport: Transport,
        session: Session,
        name: str,
        nursery: trio.Nursery,
        peer_connected: bool,
    ) -> None:
        self.vm = vm
        self.gone: Final = trio.Event()
        self._settings = vm.settings  # a change of them is for the next front end
        self.session = session
        session.first_order = self._settings.target
        self.balloon = session.balloon
        self.balloon.ram.stated = self._settings.memory
        self._pid = transport.peer_pid() if peer_connected else None
        self._guest = AttachedGuest(
            self.balloon,
            vm.counters,
            self._settings.policy,
            vm.wakefulness,
            PinGuard(self._pid, vm.proc, transport.is_peer, vm.examiner),
            vm.log,
            paused=vm.paused,
            report_limit=_report_limit(self._settings.report_rate),
            counted=lambda: vm.counted.set(),
            polling=transport.polling,
        )
        self._rings = RingSet(self._guest, self.session, nursery)
        self._executor = EffectExecutor(self.session, self._guest, self._rings, vm.actual_changed)
        self._transport = transport
        self._nursery = nursery
        transport.stalled = self._stalled
        self.keeper = Keeper(
            vm.saved_to,
            Parts(
                name,
                transport,
                self.session,
                self._rings,
                lambda: self._guest.memory,
                lambda: self._executor.channel,
                peer_connected,
            ),
        )
        self._conversation = Conversation(transport, self.keeper, self._answer)
        self.orders: Final = Orders(
            vm, session, self._rings.stats, self.keeper, self._executor.config_changed
        )
        self._rings.stats.sampled = self.orders.sampled
        self._executor.rings_changed = self.orders.look

    def attach(self) -> None:
        """A front end has just connected."""
        self.keeper.attached()
        self.vm.log.info(f"front end attached (process {self._pid})")

    async def reattach(self, left: LeftConnection) -> None:
        """Take over a front end that another process served, whose session this already has;
        serve() answers the pending request."""
        self._guest.memory = left.memory
        self._executor.channel = left.channel
        self.keeper.foreign = self._guest.foreign = left.foreign
        self._rings.calls.update(left.calls)
        self._rings.errs.update(left.errs)
        for ring in left.rings:
            self._rings.take_over(ring.index, ring.setup, ring.bound, ring.kick, ring.broken)
        if self.balloon.stats.taken is not None:
            self._rings.stats.expect_stale()
        self._executor.observe_balloon()
        await self._rings.apply()
        self._executor.tell_config()
        self.vm.log.info(f"front end resumed (process {self._pid})")
        self._conversation.pending = left.pending

    # Messages

    async def serve(self) -> None:
        """Answer messages until the connection ends, then stop and release everything."""
        self._guest.look_for_pins(trio.current_time())
        self._nursery.start_soon(self._poll_stats)
        self._nursery.start_soon(self.orders.run)
        self._nursery.start_soon(make_way, self._transport, self.vm.next_waits, self._make_way)
        try:
            await self._conversation.run()
        except StreamError as error:
            self._misbehaved(f"connection ended: {error}")
        except ConnectionError:
            pass  # the front end went while its reply was sent
        finally:
            with trio.CancelScope(shield=True):
                await self._executor.close()
            self._guest.pins.close()

    async def _answer(self, message: Message) -> bytes | None:
        try:
            return await self._executor.run(requests.handle(self.session, message))
        except FrontEndError as error:
            self._misbehaved(f"refused {message.name}: {error}")
            return requests.refuse(self.session, message)

    async def hold(self) -> None:
        """Stop between two messages, and between two requests of each ring, until release(), even
        if this is cancelled; or be gone."""
        if await self._conversation.hold():
            await self._rings.pause()
        else:
            await self.gone.wait()

    async def release(self) -> None:
        """End a hold, or cancel one that is still being waited for."""
        await self._rings.apply()
        self._conversation.release()

    async def disconnect(self) -> None:
        """End the connection, and wait until everything is released."""
        self._conversation.end()
        await self.gone.wait()

    def _make_way(self) -> None:
        self._misbehaved(SILENT)
        self._conversation.end()

    def _misbehaved(self, text: str) -> None:
        self.vm.counters.front_end_errors += 1
        self.vm.counted.set()
        self.vm.log.misbehaved(text)

    def _stalled(self) -> None:
        """The front end has not sent anything yet, or stopped inside a message."""
        self.vm.counters.front_end_stalls += 1
        self.vm.counted.set()
        self.vm.log.misbehaved("front end is connected and does not finish its message")

    # The target

    def pause(self, paused: bool) -> None:
        """Acknowledge reports without discarding them, or discard them again."""
        self._guest.paused = paused

    # Statistics

    def request_stats(self) -> None:
        """Request statistics. Raises CommandError if the guest sends none."""
        self._check_gives_stats()
        self._rings.stats.request()

    async def fresh_stats(self) -> None:
        """Request statistics and wait for them. Raises CommandError if the guest sends none."""
        self._check_gives_stats()
        await self._rings.stats.fresh()

    def _check_gives_stats(self) -> None:
        if not self.session.gives_stats:
            raise CommandError("the guest's driver is not ready or provides no statistics")

    def _state(self) -> VmState:
        if not self.session.driver_ready:
            return VmState.NO_DRIVER
        if self.balloon.order is not None:
            return VmState.MOVING  # the order is being judged
        return self._executor.convergence.state(
            trio.current_time(), self.balloon.memory_size, self.balloon.stats
        )

    def _is_pending(self) -> bool:
        """Whether the target waits for a driver."""
        balloon = self.balloon
        if balloon.order is not None:
            return True
        return not self.session.driver_ready and balloon.target_pages != balloon.held_pages

    async def _poll_stats(self) -> None:
        """Request statistics every stats_interval seconds; a new interval applies at once."""
        while True:
            interval, changed = self.vm.stats_interval, self.vm.stats_interval_changed
            with trio.move_on_after(interval if interval > 0 else math.inf):
                await changed.wait()
                continue
            self._rings.stats.request()

    def statistics(self, known: VmStatistics, *, details: bool) -> VmStatistics:
        """Complete the snapshot. Never waits, but briefly for the examiner (memory/asking.py)."""
        balloon, session, memory = self.balloon, self.session, self._guest.memory
        is_known, now = balloon.memory_size > 0, clock.boottime()
        self._guest.look_for_pins(trio.current_time())
        return replace(
            known,
            front_end_pid=self._pid,
            features=session.features,
            protocol_features=session.protocol_features,
            queues=self._rings.statistics() if details else (),
            regions=memory.statistics() if details else (),
            guest_memory=balloon.memory_size,
            target=balloon.target if is_known or balloon.order is not None else None,
            pending=self._is_pending(),
            actual=balloon.actual if is_known else None,
            balloon=balloon.balloon_size,
            resident=memory.resident(),
            driver_ready=session.driver_ready,
            state=self._state(),
            pause_reasons=self._guest.pause_reasons(trio.current_time()),
            pause_hint=self._guest.pause_hint(),
            queue_map_ambiguous=self._rings.map_ambiguous,
            report_rate=self._settings.report_rate,
            huge_pages=self._guest.gathering.statistics() if memory.has_grids else None,
            stats=balloon.stats.values,
            stats_last_update=balloon.stats.last_update,
            stats_age=balloon.stats.age(now),
            stats_taken=balloon.stats.taken,
            stats_actual=balloon.stats.actual,
            held=balloon.hold.lasts(now),
            held_for=balloon.hold.left(now),
        )

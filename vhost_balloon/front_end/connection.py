"""One attached front end: its messages, and the effects that they have.

The session decides, this carries out. Whatever changes memory, rings or their eventfds goes
through here, one message at a time; and nothing is unmapped before a running discard has come to
the end of its piece.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final, assert_never

import trio

from protocol.vhost_user import BackendRequest
from protocol.vhost_user_payloads import Region
from protocol.virtio_balloon import BalloonFeature
from vhost_balloon.balloon.convergence import Convergence
from vhost_balloon.balloon.device import Balloon
from vhost_balloon.balloon.guest_stats import restore_stats
from vhost_balloon.errors import CommandError, FrontEndError, StreamError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.figures.refusal import OPERATOR, Refusal
from vhost_balloon.figures.statistics import VmState
from vhost_balloon.front_end.channel import BackendChannel
from vhost_balloon.front_end.conversation import Conversation
from vhost_balloon.front_end.documents import restore_balloon, restore_session
from vhost_balloon.front_end.keeper import Keeper, clock_offset
from vhost_balloon.front_end.parts import Left, Parts
from vhost_balloon.front_end.transport import Transport
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.memory.pins import PinGuard
from vhost_balloon.memory.region import MappedRegion, check_disjoint, refusal
from vhost_balloon.pace.rate import REPORT_BURST, Bucket
from vhost_balloon.queues.attached_guest import AttachedGuest
from vhost_balloon.queues.ring_set import RingSet
from vhost_balloon.session import effects, requests
from vhost_balloon.session.effects import Effect
from vhost_balloon.session.message import Message
from vhost_balloon.session.session import Session
from vhost_balloon.vm.snapshot import VmStatistics
from vhost_balloon.vm.vm import Vm


async def serve_front_end(vm: Vm, fd: OwnedFd, name: str, *, peer_connected: bool = True) -> None:
    """Serve the front end at the other end of a connected socket until it goes; nothing of it is
    left then.

    name: what the store knows the socket by. peer_connected: whether the process at the other end
    made the connection itself. Where the socket was handed to it, the kernel names whoever made
    it, and pins cannot be looked for.
    """
    transport = Transport(fd, vm.shelf, vm.journal, vm.pipe)
    await run_connection(vm, transport, name, peer_connected, _attach)


async def _attach(connection: FrontEndConnection) -> None:
    connection.attach()


Prepare = Callable[["FrontEndConnection"], Awaitable[None]]


async def run_connection(
    vm: Vm, transport: Transport, name: str, peer_connected: bool, prepare: Prepare
) -> None:
    """Serve a connection until its front end goes; prepare() is called before its messages.

    If it ends because this process does, all that is stored stays for the next one.
    """
    try:
        async with trio.open_nursery() as nursery:
            connection = FrontEndConnection(vm, transport, name, nursery, peer_connected)
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
    connection.gone.set()
    vm.status_changed.set()
    vm.log.info("front end gone")


def _report_limit(rate: int | None) -> Bucket | None:
    return None if rate is None else Bucket(rate, rate * REPORT_BURST)


class FrontEndConnection:
    """From accept to the end of the connection; its tasks live in nursery."""

    has_device: Final = True

    def __init__(
        self,
        vm: Vm,
        transport: Transport,
        name: str,
        nursery: trio.Nursery,
        peer_connected: bool,
    ) -> None:
        self.vm = vm
        self.gone: Final = trio.Event()
        self._settings = vm.settings  # a change of them is for the next front end
        self.balloon = Balloon()
        if self._settings.target is not None:
            self.balloon.set_target(self._settings.target)
        self.session = Session(self.balloon, self._settings.offered)
        self._pid = transport.peer_pid() if peer_connected else None
        self._device = AttachedGuest(
            self.balloon,
            vm.counters,
            self._settings.policy,
            vm.wakefulness,
            PinGuard(self._pid, vm.proc, transport.is_peer),
            vm.log,
            paused=vm.paused,
            report_limit=_report_limit(self._settings.report_rate),
            counted=lambda: vm.counted.set(),
        )
        self._convergence = Convergence()
        self._rings = RingSet(self._device, self.session, nursery)
        self._transport = transport
        self._channel: BackendChannel | None = None
        self._config_told = False
        self._nursery = nursery
        transport.stalled = self._stalled
        self.keeper = Keeper(
            vm.saved_to,
            Parts(
                name,
                transport,
                self.session,
                self._rings,
                lambda: self._device.memory,
                lambda: self._channel,
                peer_connected,
            ),
        )
        self._conversation = Conversation(transport, self.keeper, self._answer)
        self._rings.stats.sampled = self.keeper.save_stats

    def attach(self) -> None:
        """A front end has just connected."""
        self.keeper.attached()
        self.vm.log.info(f"front end attached (process {self._pid})")

    async def resume(self, left: Left) -> None:
        """Go on with a front end that another process served; serve() answers what that left."""
        areas, memory = left.documents, self._device.memory
        memory.replace(left.memory.regions)
        restore_session(self.session, areas["connection"]["session"])
        self.session.regions = [mapped.region for mapped in memory.regions]
        restore_balloon(self.session, areas["balloon"])
        self.balloon.memory_size = memory.size
        restore_stats(self.balloon.stats, areas["stats"], clock_offset())
        self._channel = left.channel
        self.keeper.foreign = self._device.foreign = left.foreign
        self._rings.calls.update(left.calls)
        self._rings.errs.update(left.errs)
        for ring in left.rings:
            self._rings.take_over(ring.index, ring.setup, ring.bound, ring.kick, ring.broken)
        self._rings.stats.expect_stale()
        self._follow()
        await self._rings.apply()
        self._tell_config()
        self._transport.is_new = False
        self.vm.log.info(f"front end resumed (process {self._pid})")
        self._conversation.pending = left.pending

    # Messages

    async def serve(self) -> None:
        """Answer messages until the connection ends, then stop and release everything."""
        self._device.look_for_pins(trio.current_time())
        self._nursery.start_soon(self._poll_stats)
        try:
            await self._conversation.run()
        except StreamError as error:
            self._misbehaved(f"connection ended: {error}")
        except ConnectionError:
            pass  # the front end went while we answered
        finally:
            with trio.CancelScope(shield=True):
                await self._rings.close()
            self._device.memory.close()
            self._device.pins.close()
            if self._channel is not None:
                self._channel.close()

    async def _answer(self, message: Message) -> bytes | None:
        try:
            return await self._handle(message)
        except FrontEndError as error:
            self._misbehaved(f"refused {message.name}: {error}")
            return requests.refuse(self.session, message)

    async def _handle(self, message: Message) -> bytes | None:
        """Drive the session through one message. Raises FrontEndError if it refuses."""
        steps = requests.handle(self.session, message)
        try:
            effect = next(steps)
            while True:
                try:
                    result = await self._carry_out(effect)
                except FrontEndError as error:
                    effect = steps.throw(error)
                else:
                    effect = steps.send(result)
        except StopIteration as stop:
            reply: bytes | None = stop.value
            return reply

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

    def _misbehaved(self, text: str) -> None:
        self.vm.counters.front_end_errors += 1
        self.vm.counted.set()
        self.vm.log.misbehaved(text)

    def _stalled(self) -> None:
        """It says nothing at all, or stopped half-way."""
        self.vm.counters.front_end_stalls += 1
        self.vm.counted.set()
        self.vm.log.misbehaved("front end is connected and does not finish its message")

    # Effects

    async def _carry_out(self, effect: Effect) -> int | None:
        match effect:
            case effects.StopRing(index):
                return await self._rings.stop(index)
            case effects.StartRing(index, kick, setup):
                await self._rings.start(index, kick, setup)
            case effects.RingsChanged():
                await self._rings.apply()
                self._tell_config()
            case effects.SetKick(index, kick):
                await self._rings.set_kick(index, kick)
            case effects.SetCall(index, fd):
                self._rings.set_call(index, fd)
            case effects.SetErr(index, fd):
                self._rings.set_err(index, fd)
            case effects.AddRegion(region, fd):
                check_disjoint(self.session.regions, region)
                self._device.memory.add(self._map(region, fd))
                self._device.forget_gathered()
            case effects.RemoveRegion(region):
                await self._remove_region(region)
            case effects.ReplaceRegions(regions):
                await self._replace_regions(regions)
            case effects.SetBackendChannel(fd):
                self._set_channel(fd)
            case effects.NewDriver():
                self._rings.stats.forget()
                self._convergence.new_driver(trio.current_time())
            case effects.ActualChanged():
                self._follow()
                self.vm.actual_changed()
            case effects.ConfigChanged():
                self._config_changed()
            case _:
                assert_never(effect)
        return None

    def _map(self, region: Region, fd: OwnedFd) -> MappedRegion:
        """Raises FrontEndError; the descriptor is the mapping's only on success."""
        mapped = MappedRegion(region, fd)
        if not mapped.shrink_sealed:
            self.vm.log.misbehaved(
                "guest memory is not sealed against shrinking: if its file is truncated, this "
                "daemon ends"
            )
        reason = refusal(self._settings.policy, mapped.filesystem)
        if reason is not None:
            self.vm.log.misbehaved(f"guest memory will not be discarded: {reason}")
        return mapped

    async def _remove_region(self, region: Region) -> None:
        mapped = next(m for m in self._device.memory.regions if m.region == region)
        await self._rings.pause()
        self._rings.drop_region(mapped)
        self._device.memory.remove(mapped)
        mapped.close()
        await self._rings.apply()

    async def _replace_regions(self, regions: list[tuple[Region, OwnedFd]]) -> None:
        """Map the new table, move the rings, unmap the old one; or change nothing and raise."""
        memory = GuestMemory()
        try:
            for region, fd in regions:
                check_disjoint((m.region for m in memory.regions), region)
                memory.add(self._map(region, fd))
            await self._rings.pause()
            self._rings.rebind(self._rings.plan(memory))
        except FrontEndError:
            memory.unmap()
            await self._rings.apply()
            raise
        old, self._device.memory = self._device.memory, memory
        old.close()
        await self._rings.apply()

    def _set_channel(self, fd: OwnedFd) -> None:
        channel = BackendChannel(fd)
        if self._channel is not None:
            self._channel.close()
        self._channel = channel
        self._config_told = False
        self._tell_config()

    # The target

    def set_target(self, value: int) -> None:
        """Have the guest keep value bytes (> 0); the config space shows it on return."""
        if self.balloon.set_target(value):
            self._config_changed()
        self.keeper.save_balloon()

    def _config_changed(self) -> None:
        self._follow()
        self.session.config_unread = True
        self._config_told = False
        self._tell_config()

    def _tell_config(self) -> None:
        """Tell the front end of a new num_pages, once, and never while the device is suspended."""
        if self.session.suspended:
            self._config_told = False
        elif self.session.config_unread and not self._config_told and self._channel is not None:
            self._config_told = self._channel.send(BackendRequest.CONFIG_CHANGE_MSG)
            self.vm.counters.config_changes += self._config_told

    def _follow(self) -> None:
        self._convergence.observe(
            self.balloon.target_pages, self.balloon.held_pages, trio.current_time()
        )

    def pause(self, paused: bool) -> None:
        """Acknowledge reports without discarding them, or go on."""
        self._device.paused = paused

    # Statistics

    async def fresh_stats(self) -> None:
        """Ask for statistics and wait for them. Raises CommandError if none can come."""
        if not self.session.driver_ready or not self.session.features & BalloonFeature.STATS_VQ:
            raise CommandError("the guest's driver is not ready, or gives no statistics")
        updated = self._rings.stats.updated
        self._rings.stats.request()
        await updated.wait()

    def _state(self) -> VmState:
        if not self.session.driver_ready:
            return VmState.NO_DRIVER
        return self._convergence.state(
            trio.current_time(), self.balloon.memory_size, self.balloon.stats
        )

    def _pause_reasons(self) -> tuple[str, ...]:
        """Why reports are not discarded, as far as was seen at the last one."""
        refusal = self._device.report_refusal()
        return () if refusal is None else (OPERATOR if refusal == Refusal.PAUSED else refusal,)

    async def _poll_stats(self) -> None:
        """Ask for statistics every stats_interval seconds; a new interval counts at once."""
        while True:
            interval, changed = self.vm.stats_interval, self.vm.stats_interval_changed
            with trio.move_on_after(interval if interval > 0 else math.inf):
                await changed.wait()
                continue
            self._rings.stats.request()

    def statistics(self, known: VmStatistics, *, details: bool) -> VmStatistics:
        """A snapshot: known, and what this front end adds. Never waits."""
        balloon, session, memory = self.balloon, self.session, self._device.memory
        is_known = balloon.memory_size > 0
        return replace(
            known,
            front_end_pid=self._pid,
            features=session.features,
            protocol_features=session.protocol_features,
            queues=self._rings.statistics() if details else (),
            regions=memory.statistics() if details else (),
            guest_memory=balloon.memory_size,
            target=balloon.target if is_known or balloon.has_target else None,
            pending=balloon.has_target and not session.driver_ready,
            actual=balloon.actual if is_known else None,
            balloon=balloon.balloon_size,
            resident=memory.resident(),
            driver_ready=session.driver_ready,
            state=self._state(),
            pause_reasons=self._pause_reasons(),
            queue_map_ambiguous=self._rings.map_ambiguous,
            report_rate=self._settings.report_rate,
            huge_pages=self._device.gathering.statistics() if memory.has_grids else None,
            stats=balloon.stats.values,
            stats_last_update=balloon.stats.last_update,
            stats_age=balloon.stats.age(trio.current_time()),
        )

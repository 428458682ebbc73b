"""Carries out a session's effects: on guest memory, the rings and the back-end channel.

Memory, rings and their eventfds change only here, for one message at a time. Nothing is unmapped
before a running discard has finished its piece.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, assert_never

import trio

from protocol.vhost_user import BackendRequest
from protocol.vhost_user_payloads import Region
from vhost_balloon.balloon.convergence import Convergence
from vhost_balloon.errors import FrontEndError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.front_end.channel import BackendChannel
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.memory.region import (
    GuestRegion,
    MappedRegion,
    UntouchedRegion,
    accept,
    check_disjoint,
    refusal,
)
from vhost_balloon.queues.attached_guest import AttachedGuest
from vhost_balloon.queues.ring_set import RingSet
from vhost_balloon.session import effects
from vhost_balloon.session.effects import Effect, Steps
from vhost_balloon.session.session import Session


class EffectExecutor:
    """Executes the effects of one connection's requests.

    guest holds the memory. actual_changed is called after the balloon's size has changed. channel
    is None until the front end has provided one.
    """

    def __init__(
        self,
        session: Session,
        guest: AttachedGuest,
        rings: RingSet,
        actual_changed: Callable[[], None],
    ) -> None:
        self.channel: BackendChannel | None = None
        self.convergence: Final = Convergence()
        self._session = session
        self._guest = guest
        self._rings = rings
        self._actual_changed = actual_changed
        self.rings_changed: Callable[[], None] = lambda: None
        """Called after rings were started, stopped or enabled."""
        self._config_told = False

    async def run(self, steps: Steps) -> bytes | None:
        """Run a request to its end and return the reply's payload, or None for no reply.

        Raises FrontEndError if the request is refused.
        """
        try:
            effect = next(steps)
            while True:
                try:
                    result = await self._execute(effect)
                except FrontEndError as error:
                    effect = steps.throw(error)
                else:
                    effect = steps.send(result)
        except StopIteration as stop:
            reply: bytes | None = stop.value
            return reply

    async def _execute(self, effect: Effect) -> object:
        match effect:
            case effects.ActualChanged():  # first: the guest waits for it at every step
                self.observe_balloon()
                self._actual_changed()
            case effects.StopRing(index):
                return await self._rings.stop(index)
            case effects.StartRing(index, kick, setup):
                await self._rings.start(index, kick, setup)
            case effects.RingsChanged():
                await self._rings.apply()
                self.tell_config()
                self.rings_changed()
            case effects.SetKick(index, kick):
                await self._rings.set_kick(index, kick)
            case effects.SetCall(index, fd):
                self._rings.set_call(index, fd)
            case effects.SetErr(index, fd):
                self._rings.set_err(index, fd)
            case effects.AddRegion(region, fd):
                return self._add_region(region, fd)
            case effects.RemoveRegion(region):
                await self._remove_region(region)
            case effects.ReplaceRegions(regions):
                return await self._replace_regions(regions)
            case effects.SetBackendChannel(fd):
                self._set_channel(fd)
            case effects.NewDriver():
                self._rings.stats.forget()
                self.convergence.new_driver(trio.current_time())
            case effects.TargetChanged():
                self.observe_balloon()
            case _:
                assert_never(effect)
        return None

    # Memory

    def _add_region(self, region: Region, fd: OwnedFd) -> object:
        check_disjoint(self._session.regions, region)
        held = self._map(region, fd)
        self._guest.memory.add(held)
        self._guest.forget_gathered()
        return held.inode

    async def _remove_region(self, region: Region) -> None:
        mapped = next(m for m in self._guest.memory.regions if m.region == region)
        await self._rings.pause()
        self._rings.drop_region(mapped)
        self._guest.memory.remove(mapped)
        mapped.close()
        await self._rings.apply()

    async def _replace_regions(
        self, regions: list[tuple[Region, OwnedFd]]
    ) -> dict[int, tuple[int, int]]:
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
        old, self._guest.memory = self._guest.memory, memory
        old.close()
        await self._rings.apply()
        return memory.files()

    def _map(self, region: Region, fd: OwnedFd) -> GuestRegion:
        """Raises FrontEndError; the descriptor is taken over only on success."""
        mapped = accept(region, fd)
        if isinstance(mapped, UntouchedRegion):
            self._guest.log.misbehaved(
                f"a region of {region.size} bytes at guest address {region.guest_address:#x} is "
                f"left alone: {mapped.why}"
            )
            return mapped
        assert isinstance(mapped, MappedRegion)
        if not mapped.shrink_sealed:
            self._guest.log.misbehaved(
                "guest memory is not sealed against shrinking: if its file is truncated, this "
                "daemon ends"
            )
        reason = refusal(self._guest.policy, mapped.filesystem)
        if reason is not None:
            self._guest.log.misbehaved(f"guest memory will not be discarded: {reason}")
        return mapped

    # num_pages

    def _set_channel(self, fd: OwnedFd) -> None:
        channel = BackendChannel(fd)
        if self.channel is not None:
            self.channel.close()
        self.channel = channel
        self._config_told = False
        self.tell_config()

    def config_changed(self) -> None:
        """Announce a new num_pages to the front end."""
        self.observe_balloon()
        self._session.config_unread = True
        self._config_told = False
        self.tell_config()

    def tell_config(self) -> None:
        """Announce an unread num_pages once, but never while the device is suspended."""
        if self._session.suspended:
            self._config_told = False
        elif self._session.config_unread and not self._config_told and self.channel is not None:
            self._config_told = self.channel.send(BackendRequest.CONFIG_CHANGE_MSG)
            self._guest.counters.config_changes += self._config_told

    def observe_balloon(self) -> None:
        """Tell convergence of a new target or balloon size."""
        balloon = self._session.balloon
        self.convergence.observe(balloon.target_pages, balloon.held_pages, trio.current_time())

    async def close(self) -> None:
        """Stop the rings and close all descriptors and mappings."""
        await self._rings.close()
        self._guest.memory.close()
        if self.channel is not None:
            self.channel.close()

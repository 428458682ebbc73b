"""The operator's orders for one device: from a size in bytes to num_pages.

An order is carried out once. Before that, it is judged how much memory the guest has
(balloon/guest_ram.py), and the guest's statistics are the evidence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from vhost_balloon import clock
from vhost_balloon.balloon.hold import FREE, Hold, hold_for
from vhost_balloon.errors import CommandError
from vhost_balloon.front_end.keeper import Keeper
from vhost_balloon.queues.stats import StatsProcessor
from vhost_balloon.session.session import Session
from vhost_balloon.sizes import format_size
from vhost_balloon.vm.vm import Vm, not_activated

SAMPLE_PATIENCE: Final = 2.0
"""Seconds for which an order waits for the guest's statistics."""


class Orders:
    """config_changed: called when num_pages has changed."""

    def __init__(
        self,
        vm: Vm,
        session: Session,
        stats: StatsProcessor,
        keeper: Keeper,
        config_changed: Callable[[], None],
    ) -> None:
        self._vm = vm
        self._session = session
        self._balloon = session.balloon
        self._stats = stats
        self._keeper = keeper
        self._config_changed = config_changed
        self._is_due = trio.Event()
        self._newest = self._last_carried_out = 0
        """The operator's orders, numbered as they came."""

    async def order(self, value: int, seconds: int | None = None) -> None:
        """See vm.Orders. Of several orders that are judged at once, the newest holds."""
        self.hold(seconds)  # from now on, so that the policy does not come in between
        self._newest += 1
        number = self._newest
        await self.judge_memory()
        if self._vm.front_end is None or self._vm.front_end.orders is not self:
            raise not_activated(f": the front end of VM '{self._vm.id}' went away")
        if number > self._last_carried_out:
            self._last_carried_out = number
            self.set_target(value)

    def policy_order(self, value: int) -> None:
        """See vm.Orders. It does not ask the guest, as the policy has just done so."""
        self._check_free()
        if not self._session.driver_ready:
            raise CommandError(f"no driver is ready in VM '{self._vm.id}'")
        size = self._balloon.memory_size
        self._judge()
        if self._balloon.memory_size != size:  # the order would mean another balloon
            raise CommandError(f"VM '{self._vm.id}' has other memory than was known of it")
        self.set_target(value)

    def _check_free(self) -> None:
        """Raises CommandError while an operator holds the VM."""
        now, hold = clock.boottime(), self._balloon.hold
        if hold.lasts(now):
            left = hold.left(now)
            end = "" if left is None else f" for another {math.ceil(left)} s"
            raise CommandError(f"an operator holds VM '{self._vm.id}'{end}")

    def hold(self, seconds: int | None) -> None:
        """See vm.Orders."""
        self._set_hold(hold_for(seconds, clock.boottime()))

    def release(self) -> None:
        """End a hold."""
        self._set_hold(FREE)

    def _set_hold(self, hold: Hold) -> None:
        self._balloon.hold = hold
        self._keeper.save_balloon()

    def set_target(self, value: int) -> None:
        """Set the guest's target, in bytes (> 0). It is on record on return."""
        if not self._balloon.memory_size or not self._session.has_driver:
            self._balloon.order = value
        elif self._balloon.carry_out(value):
            self._config_changed()
        self._keeper.save_balloon()

    def postpone(self, value: int) -> None:
        """Set the target as soon as the driver is ready and its memory is judged."""
        self._balloon.order = value
        self._keeper.save_balloon()
        self.look()

    def look(self) -> None:
        """The driver may be ready, so that an order that waited for it is due."""
        if self._balloon.order is not None and self._session.driver_ready:
            self._is_due.set()

    async def run(self) -> None:
        """Carry out the orders that become due."""
        self.look()
        while True:
            await self._is_due.wait()
            self._is_due = trio.Event()
            await self.judge_memory()
            if self._balloon.order is not None and self._session.driver_ready:
                self.set_target(self._balloon.order)

    # The guest's memory

    def state_memory(self, size: int | None) -> None:
        """Take the operator's word for the guest's memory: bytes, or None to judge."""
        with self._judging():
            self._balloon.ram.stated = size
            self._balloon.ram.judge()

    async def judge_memory(self) -> None:
        """Judge what memory the guest has, for an order.

        Waits up to SAMPLE_PATIENCE for a sample if one is needed.
        """
        if not self._session.driver_ready:
            return
        if self._session.gives_stats and self._balloon.ram.needs_sample():
            with trio.move_on_after(SAMPLE_PATIENCE):
                await self._stats.fresh()
        self._judge()  # another device than before, if one began meanwhile

    def _judge(self) -> None:
        with self._judging():
            self._balloon.ram.judge()

    def sampled(self) -> None:
        """The guest has given a sample."""
        with self._judging():
            self._balloon.sampled()
        self._keeper.save_stats()

    @contextmanager
    def _judging(self) -> Iterator[None]:
        """What the guest has may change meanwhile."""
        ram = self._balloon.ram
        size, judged, left_out = ram.size, ram.judged, ram.left_out
        yield
        if (judged, left_out) != (ram.judged, ram.left_out):
            self._keeper.changed()
        if ram.left_out and left_out != ram.left_out and ram.stated is None:
            self._vm.log.warning(
                f"the front end shares {format_size(ram.shared)}, but the guest says that it has "
                f"{format_size(ram.total)}: guest memory is taken for {format_size(ram.size)} "
                "(if that is wrong, state it with the setting 'memory')"
            )
        if size != ram.size and self._balloon.balloon_size:
            self._vm.actual_changed()

"""Runs the policy: looks at the host and its VMs every TICK, decides, orders, remembers, reports.

In mode off it waits, and keeps nothing open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import trio

from vhost_balloon.clock import boottime
from vhost_balloon.errors import CommandError, OperatorError
from vhost_balloon.log.lines import logger
from vhost_balloon.policy.constants import MIN_TICK, TICK
from vhost_balloon.policy.decide import HostState, judge
from vhost_balloon.policy.inputs import HostFigures
from vhost_balloon.policy.interfaces import Host, HostUnreadable, Lock, Policed, Vms
from vhost_balloon.policy.lines import mistakes, tick_line
from vhost_balloon.policy.memory_file import MemoryFile
from vhost_balloon.policy.past import Order
from vhost_balloon.policy.reading import HostReader
from vhost_balloon.policy.release import Released, below_ceiling
from vhost_balloon.policy.report import Report
from vhost_balloon.policy.settings import Mode, PolicySettings
from vhost_balloon.policy.tick import Ticks, figures
from vhost_balloon.printable import printable
from vhost_balloon.threads import Thread

OnOrders = Callable[[HostState, Sequence[Order]], None]
"""Called after a tick with what was ordered, at least one order."""


class Policy:
    """The host's policy. run() does everything; the other methods are the operator's."""

    def __init__(
        self,
        vms: Vms,
        open_host: Callable[[PolicySettings], Host],
        settings: PolicySettings,
        lock: Lock,
        memory_file: MemoryFile | None,
        on_orders: OnOrders,
        clock: Callable[[], float] = boottime,
        thread: Thread | None = None,
    ) -> None:
        """open_host: raises OperatorError if the host's memory cannot be read. thread: what the
        host is read in; None for one of its own."""
        self._vms = vms
        self._host: Final = HostReader(open_host, Thread() if thread is None else thread)
        self._settings = settings
        self._lock = lock
        self._on_orders = on_orders
        self._clock = clock
        self._mode = settings.mode
        self.changed = trio.Event()
        """Set when report() may have changed. Whoever waits for it replaces it."""
        self._ticks = Ticks(vms, memory_file)
        self._work = trio.Event()
        """Set when there is work for run(), if only to close what is not needed any more."""
        self._order_of_all: Final = trio.Lock()
        """Held by an order that concerns all VMs until it has taken effect."""
        self._orders = 0
        """Orders of the operator that are being carried out."""
        self._began = self._decided = float("-inf")
        """The last tick's start and its decisions, on trio's clock."""
        self._is_readable = True
        self._problems: list[str] = []

    # Orders of the operator

    async def set_mode(self, mode: Mode) -> None:
        """Put a mode in force, and end a release_all(). Takes effect at the next tick.

        Raises CommandError if the host's memory cannot be read.
        """
        async with self._order_of_all:
            if mode is not Mode.OFF:
                await self._need_host()
            self._ticks.end_release(self._clock())
            self._enter(mode)

    async def _need_host(self) -> None:
        """Raises CommandError if the host's memory cannot be read."""
        try:
            await self._host.open(self._settings)
        except OperatorError as error:
            raise CommandError(str(error)) from None

    def change(self, settings: PolicySettings) -> None:
        """Follow a new configuration. A mode that was set by order stays unless the configured one
        changes."""
        before, self._settings = self._settings, settings
        self._ticks.look_again()
        self._enter(self._mode if before.mode is settings.mode else settings.mode)

    def _enter(self, mode: Mode) -> None:
        self._mode = mode
        self.changed.set()
        if self._has_work:
            self._work.set()

    @property
    def _has_work(self) -> bool:
        return self._mode is not Mode.OFF or self._ticks.is_releasing

    async def hold(self, name: str, seconds: int | None) -> None:
        """Leave a VM alone, for ever or for a time. Raises CommandError."""
        with self._order():
            await self._vms.hold(name, seconds)

    async def release(self, name: str) -> None:
        """End a VM's hold. Raises CommandError."""
        with self._order():
            await self._vms.release(name)

    @contextmanager
    def _order(self) -> Iterator[None]:
        """Carry out an order: what it has open stays open, and the next tick looks at its result.
        After it, run() closes what is not needed any more."""
        self._orders += 1
        try:
            yield
        finally:
            self._orders -= 1
            self._ticks.look_again()
            self._work.set()

    async def release_all(self) -> Released:
        """End all holds, and from now on raise all targets to their ceilings, in any mode.

        Raises CommandError.
        """
        async with self._order_of_all:
            with self._order():
                return await self._release_all()

    async def _release_all(self) -> Released:
        """Raises CommandError."""
        problem = await self._lock.try_take()
        if problem is not None:
            raise CommandError(problem)
        await self._need_host()
        refused: dict[str, str] = {}
        looked = await self._vms.look(self._settings, ())
        async with trio.open_nursery() as nursery:
            for name in [name for name, vm in looked.items() if vm.held]:
                nursery.start_soon(self._end_hold, name, refused)
        looked = await self._vms.look(self._settings, ())
        self._ticks.release(self._clock())
        self._enter(self._mode)
        missed, problems = self._vms.failure, self._vms.problems
        if problems and not looked and not self._vms.left_out:
            missed = problems[0]
        if missed:
            raise CommandError(f"memory goes back to known VMs only: {missed}")
        held = {name: refused.get(name, "it is held") for name, vm in looked.items() if vm.held}
        return Released(sorted(below_ceiling(figures(looked))), {**self._vms.left_out, **held})

    async def _end_hold(self, name: str, refused: dict[str, str]) -> None:
        """refused: takes why that failed."""
        try:
            await self._vms.release(name)
        except CommandError as error:
            refused[name] = str(error)
            logger.warning("cannot end the hold of %s: %s", printable(name), printable(str(error)))

    def report(self) -> Report:
        """The state after the last tick."""
        problems = [*self._problems]
        if self._ticks.is_releasing:
            problems.append("memory goes back to all VMs by order; policy-mode ends this")
        return Report(
            mode=self._mode,
            configured=self._settings.mode,
            readable=self._is_readable,
            problems=problems,
            host=self._ticks.host,
            age=max(self._clock() - self._ticks.at, 0.0),
            vms=self._ticks.reports(),
            unanswered=self._vms.left_out,
            releasing=self._ticks.is_releasing,
        )

    # The loop

    async def run(self) -> None:
        """Run until cancelled."""
        self._ticks.go_on(self._clock())
        try:
            while True:
                if not self._has_work:
                    if not self._orders:
                        self._rest()
                    await self._work.wait()
                self._work = trio.Event()
                await trio.sleep_until(self._began + TICK)
                if self._has_work:
                    self._began = trio.current_time()
                    await self._tick()
                    self.changed.set()
        finally:
            self._rest()

    def _rest(self) -> None:
        """Write down the memory and close everything. Only run() calls it, between two ticks."""
        self._ticks.stop(self._clock())
        self._host.close()
        self._vms.close()
        self._lock.release()
        self._say([])
        self._is_readable = True

    async def _tick(self) -> None:
        if not await self._take_lock():
            return
        looked = await self._ticks.look(self._clock(), self._settings)
        if trio.current_time() - self._decided < MIN_TICK or not self._has_work:
            return
        host = await self._read_host(self._clock())
        if host is not None:
            await self._decide(host, looked)

    async def _take_lock(self) -> bool:
        """False if this process is not to decide, which is logged."""
        problem = await self._lock.try_take()
        if problem is None:
            return True
        self._ticks.stop(self._clock())
        self._vms.close()
        self._say([problem])
        return False

    async def _decide(self, host: HostFigures, looked: Mapping[str, Policed]) -> None:
        if self._ticks.has_rested and judge(host, self._settings.reserve_of(host.total)).short:
            looked = await self._ticks.look_at_all(self._clock(), self._settings)
        if self._lock.is_partial and not await self._take_lock():
            return
        if not self._has_work:  # any more
            return
        now = self._clock()
        self._decided = trio.current_time()
        found = mistakes(self._settings, host.total, figures(looked))
        self._say([*self._vms.problems, *found])
        before = self._ticks.host
        orders = await self._ticks.decide(now, host, looked, self._settings, self._mode)
        self._tell(before, orders)

    def _tell(self, before: HostState | None, orders: Sequence[Order]) -> None:
        """Log what a tick changed, and pass its orders on. before: the host at the last tick."""
        state = self._ticks.host
        assert state is not None
        was_short = before is not None and before.short
        if orders or state.short is not was_short:
            logger.info("%s", tick_line(state, self._mode, orders))
        if orders:
            self._on_orders(state, orders)

    async def _read_host(self, now: float) -> HostFigures | None:
        """None if it cannot be read, which is logged."""
        try:
            figures = await self._host.read(self._settings, now)
        except (OperatorError, HostUnreadable) as error:
            self._is_readable = False
            self._say([f"the policy decides nothing: {error}", *self._vms.problems])
            return None
        self._is_readable = True
        return figures

    def _say(self, problems: Sequence[str]) -> None:
        """Log each problem once while it lasts, and its end."""
        for problem in problems:
            if problem not in self._problems:
                logger.warning("%s", problem)
        for problem in self._problems:
            if problem not in problems:
                logger.info("no longer: %s", problem)
        self._problems = [*problems]

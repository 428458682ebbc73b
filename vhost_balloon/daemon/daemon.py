"""Runs one VM's daemon: opens its parts, serves, and leaves, in an order that loses nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from vhost_balloon.config.config import Config
from vhost_balloon.containment import MISTAKE_PAUSE, lone
from vhost_balloon.control.commands import COMMANDS
from vhost_balloon.daemon.commands import service_commands
from vhost_balloon.daemon.front_ends import FrontEnds
from vhost_balloon.daemon.reload import Configuration
from vhost_balloon.daemon.side_services import Control, Metrics, open_beside
from vhost_balloon.daemon.sockets import Listening, Sockets
from vhost_balloon.daemon.successor import Successor
from vhost_balloon.errors import OperatorError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.log.lines import logger
from vhost_balloon.log.setup import tell_losses
from vhost_balloon.restart import upgrade
from vhost_balloon.restart.records import LeftRecord, find_record, restore_vm
from vhost_balloon.restart.taking_over import keep_lock, take_over, wait_for_lock
from vhost_balloon.service.environment import fdstore_limit, inherited, watchdog_interval
from vhost_balloon.service.handed_over import (
    METRICS,
    PREFIX,
    RESERVED_NAMES,
    HandedOver,
    take_sockets,
)
from vhost_balloon.service.listeners import adopt_connection
from vhost_balloon.service.signals import follow_signals
from vhost_balloon.service.systemd import READY, Notifier, status
from vhost_balloon.store.descriptors import CONNECTION, Store
from vhost_balloon.store.process_lock import ProcessLock
from vhost_balloon.vm.doubts import doubts
from vhost_balloon.vm.vm import Vm

ANSWER_LIMIT: Final = 1.0
"""Seconds for the reply to an order that disconnected --fd's front end, and so ends the daemon."""
COUNTERS_PAUSE: Final = 1.0
"""Seconds until changed counters are written to the record, unless they are shown before."""


@dataclass(frozen=True, slots=True)
class Handed:
    """Descriptors that this process was started with: listening sockets by name, and what the
    previous process left in the store."""

    sockets: dict[str, HandedOver] = field(default_factory=dict)
    stored: tuple[tuple[str, OwnedFd], ...] = ()

    @property
    def is_restart(self) -> bool:
        """Whether a previous process left anything."""
        return bool(self.stored)

    @property
    def guest_waits(self) -> bool:
        """Whether a guest may hang if this process ends: the VM was left, or may have begun to
        connect to a socket of the service manager."""
        return self.is_restart or any(name not in RESERVED_NAMES for name in self.sockets)


NOTHING: Final = Handed()


def handed_over() -> Handed:
    """The descriptors from the service manager or this program itself. Raises OperatorError."""
    found = [*inherited(), *upgrade.inherited()]
    stored = tuple((name, fd) for name, fd in found if name.startswith(PREFIX))
    return Handed(take_sockets(found, is_restart=bool(stored)), stored)


async def run(
    config: Config,
    handed: Handed = NOTHING,
    task_status: trio.TaskStatus[Vm] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the daemon until SIGTERM or SIGINT. Raises OperatorError.

    With a descriptor store nothing is shut down at the end: the next process continues.
    """
    notifier = Notifier()
    store = Store(notifier, fdstore_limit(), handed.stored)
    vm = Vm(config.name, config.settings, config.socket_path, store=store)
    for doubt in doubts(config.settings):
        vm.log.warning(doubt)
    with ExitStack() as stack:
        stack.callback(notifier.close)
        daemon = _Daemon(config, vm, notifier, Sockets(store, handed.sockets), stack)
        await daemon.open(handed)
        try:
            await daemon.serve(task_status)
        except ExceptionGroup as group:
            if isinstance(mistake := lone(group), OperatorError):
                raise mistake from None
            raise
        finally:
            daemon.leave()


class _Daemon:
    """The parts of one daemon; what they open is closed with stack."""

    def __init__(
        self, config: Config, vm: Vm, notifier: Notifier, sockets: Sockets, stack: ExitStack
    ) -> None:
        self._config = config
        self._vm = vm
        self._notifier = notifier
        self._sockets = sockets
        self._stack = stack
        self._left: LeftRecord | None = None
        self._lock: ProcessLock | None = None
        self._metrics: Metrics
        self._control: Control
        self._listening: Listening | None = None
        self._connected: OwnedFd | None = None
        self._front_ends = FrontEnds(vm, None)
        self._configuration = Configuration(config, vm, None)
        self._successor = Successor(
            notifier, vm, lambda: self._front_ends.is_arriving, self._sockets
        )
        self._ready = trio.Event()
        """Set once the VM that was left is served again, or has to wait for the lock."""

    # Open

    async def open(self, handed: Handed) -> None:
        """Take over what was left, and listen. Raises OperatorError."""
        config, vm = self._config, self._vm
        self._left = await find_record(vm.store)
        if self._left is not None:
            restore_vm(vm, self._left.areas)
        self._lock = await keep_lock(vm.store)
        vm.waits_for_lock = self._lock is not None and not self._lock.take()
        if config.fd is not None and not vm.store.left(CONNECTION):
            self._connected = adopt_connection(config.fd)
        try:
            self._listen()
        except OperatorError as error:
            if not handed.is_restart:
                raise
            logger.error("%s: no other front end can connect", error)
        if not vm.waits_for_lock:
            await self._take_over()
        self._metrics = Metrics(config, vm, handed.sockets.get(METRICS), self._stack)
        # After the front-end socket: a client that can reach it finds the VM listening.
        self._control = Control(config, vm, self._sockets, self._stack)
        await open_beside(self._metrics, self._control, guest_waits=handed.guest_waits)

    def _listen(self) -> None:
        """Listen for front ends, unless --fd's is the only one. Raises OperatorError."""
        if self._config.socket_path is not None:
            opened = self._sockets.open(self._config.socket_path, self._vm.settings.access)
            self._listening = self._stack.enter_context(opened)
            self._front_ends.listener = self._listening.listener
            self._configuration.listening = self._listening

    async def _take_over(self) -> None:
        await take_over(self._vm, self._left, self._config.arguments)
        if self._listening is not None:
            await self._listening.keep()

    # Serve

    async def serve(self, task_status: trio.TaskStatus[Vm]) -> None:
        """Serve the VM, and its operators once it is served."""
        vm, notifier = self._vm, self._notifier
        async with trio.open_nursery() as nursery:
            stop = nursery.cancel_scope.cancel

            def start(where: str, run: Callable[[], Awaitable[None]]) -> None:
                nursery.start_soon(vm.internal_errors.supervise, where, run)

            start("log", tell_losses)
            start("upgrade", self._successor.run)
            hang_up = partial(self._successor.want, is_checked=False)
            await nursery.start(partial(follow_signals, stop, notifier, hang_up))
            interval = watchdog_interval()
            if interval is not None:
                start("watchdog", partial(notifier.feed_watchdog, interval))
            start("wakefulness", vm.wakefulness.run)
            if vm.store.active:
                start("store", vm.store.run)
            nursery.start_soon(self._serve_vm, stop)
            # Clients that connect meanwhile wait: an order finds the VM as it was left.
            await self._ready.wait()
            commands = service_commands(self._configuration, self._successor)
            self._control.commands = {**COMMANDS, **commands}
            start("control", self._control.run)
            start("metrics", self._metrics.run)
            start("counters", partial(_save_counters, vm))
            start("status", partial(_keep_status, vm, notifier))
            logger.info("serving %s", vm.id)
            task_status.started(vm)
            await notifier.send(f"{READY}\n{status(summary(vm))}")

    async def _serve_vm(self, stop: Callable[[], None]) -> None:
        """Serve front ends until cancelled, or only --fd's. Raises OperatorError."""
        vm = self._vm
        if vm.waits_for_lock and self._lock is not None:
            self._ready.set()
            self._left = await wait_for_lock(vm, self._lock, self._left)
            await self._take_over()
        async with trio.open_nursery() as nursery:
            revived = trio.Event()
            nursery.start_soon(self._sweep, revived)
            areas = None if self._left is None else self._left.areas
            await self._front_ends.run(areas, self._connected, revived.set)
            if self._config.socket_path is not None:
                await self._listen_again()
                await self._front_ends.run(None, None, revived.set)
        with trio.move_on_after(ANSWER_LIMIT):
            await vm.order_answered.wait()
        stop()

    async def _listen_again(self) -> None:
        """Listen as soon as the socket's path, which something else occupies, is free."""
        said = ""
        while self._listening is None:
            try:
                self._listen()
            except OperatorError as error:
                if str(error) != said:
                    logger.error("%s; trying again until it works", error)
                said = str(error)
                await trio.sleep(MISTAKE_PAUSE)
        await self._listening.keep()

    async def _sweep(self, revived: trio.Event) -> None:
        """Drop what was left and is no longer needed, once the VM is served again."""
        await revived.wait()
        assert self._vm.shelf is not None
        self._vm.shelf.clear()
        await self._sockets.sweep()
        await self._vm.store.sweep()
        self._ready.set()

    # Leave

    def leave(self) -> None:
        """Leave everything to the next process as it is now, even if a bug ends this one."""
        self._vm.save_counters()
        self._vm.close()


async def _save_counters(vm: Vm) -> None:
    """Write counters to the record soon after they change."""
    while vm.store.active:
        await vm.counted.wait()
        await trio.sleep(COUNTERS_PAUSE)
        vm.counted = trio.Event()
        vm.save_counters()


def summary(vm: Vm) -> str:
    """One line for `systemctl status`."""
    if vm.waits_for_lock:
        return "waiting for the previous process, which cannot be killed"
    if vm.front_end is not None and vm.front_end.orders is None:
        return "a front end is answered without a device"
    return "a front end is attached" if vm.attached else "no front end is attached"


async def _keep_status(vm: Vm, notifier: Notifier) -> None:
    """Keep the service manager's status line up to date."""
    told = summary(vm)
    while notifier:
        text = summary(vm)
        if text != told:
            await notifier.send(status(text))
            told = text
        await vm.status_changed.wait()
        vm.status_changed = trio.Event()

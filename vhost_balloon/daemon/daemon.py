"""Puts the parts together: sockets, VM, control, signals, and the order of start and end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from vhost_balloon.config.config import Config
from vhost_balloon.containment import MISTAKE_PAUSE
from vhost_balloon.control.commands import COMMANDS
from vhost_balloon.daemon.commands import service_commands
from vhost_balloon.daemon.front_ends import FrontEnds
from vhost_balloon.daemon.reload import Configuration
from vhost_balloon.daemon.side_services import Control, Metrics, open_beside
from vhost_balloon.daemon.sockets import Listening, Sockets
from vhost_balloon.errors import CommandError, OperatorError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.log.lines import logger
from vhost_balloon.log.setup import tell_losses
from vhost_balloon.restart import upgrade
from vhost_balloon.restart.records import (
    Left,
    find_record,
    keep_lock,
    restore_vm,
    take_over,
    wait_for_lock,
)
from vhost_balloon.service import systemd
from vhost_balloon.service.handed_over import (
    METRICS,
    PREFIX,
    RESERVED_NAMES,
    HandedOver,
    take_sockets,
)
from vhost_balloon.service.listeners import adopt_connection
from vhost_balloon.service.systemd import (
    READY,
    Notifier,
    fdstore_limit,
    follow_signals,
    reloading,
    status,
    watchdog_interval,
)
from vhost_balloon.store.descriptors import CONNECTION, Store
from vhost_balloon.store.process_lock import ProcessLock
from vhost_balloon.vm.vm import Vm

COUNTERS_PAUSE: Final = 1.0
"""Seconds until counters that changed are on record, unless somebody asks for them before."""
RELOADING_LIMIT: Final = 1.0
"""Seconds that an upgrade waits for the service manager to take the news."""


@dataclass(frozen=True, slots=True)
class Handed:
    """Descriptors that this process was started with: listening sockets by name, and what the
    process before it left."""

    sockets: dict[str, HandedOver] = field(default_factory=dict)
    stored: tuple[tuple[str, OwnedFd], ...] = ()

    @property
    def is_restart(self) -> bool:
        """Whether a process before this one left anything."""
        return bool(self.stored)

    @property
    def guest_waits(self) -> bool:
        """Whether the VM was left, or may have begun to connect to a socket of the service manager:
        it would hang if this process ended."""
        return self.is_restart or any(name not in RESERVED_NAMES for name in self.sockets)


NOTHING: Final = Handed()


def handed_over() -> Handed:
    """What the service manager, or this program itself, handed over. Raises OperatorError."""
    found = [*systemd.inherited(), *upgrade.inherited()]
    stored = tuple((name, fd) for name, fd in found if name.startswith(PREFIX))
    return Handed(take_sockets(found, is_restart=bool(stored)), stored)


async def run(
    config: Config,
    handed: Handed = NOTHING,
    task_status: trio.TaskStatus[Vm] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the daemon until SIGTERM or SIGINT. Raises OperatorError before anything is served.

    With a descriptor store nothing is shut down at the end: the next process goes on.
    """
    notifier = Notifier()
    store = Store(notifier, fdstore_limit(), handed.stored)
    vm = Vm(config.name, config.settings, config.socket_path, store=store)
    with ExitStack() as stack:
        stack.callback(notifier.close)
        daemon = _Daemon(config, vm, notifier, Sockets(store, handed.sockets), stack)
        await daemon.open(handed)
        try:
            await daemon.serve(task_status)
        finally:
            # Also if a bug ends it: whoever comes next finds everything as it is now.
            vm.save_counters()
            vm.close()


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
        self._left: Left | None = None
        self._lock: ProcessLock | None = None
        self._metrics: Metrics
        self._control: Control
        self._listening: Listening | None = None
        self._connected: OwnedFd | None = None
        self._front_ends: FrontEnds
        self._configuration: Configuration
        self._ready = trio.Event()
        """Set once what was left is served again, or cannot be yet."""

    async def open(self, handed: Handed) -> None:
        """Take what was left, and listen. Raises OperatorError."""
        config, vm = self._config, self._vm
        self._left = await find_record(vm.store)
        if self._left is not None:
            restore_vm(vm, self._left.areas)
        self._lock = await keep_lock(vm.store)
        vm.is_stuck = self._lock is not None and not self._lock.take()
        if config.fd is not None and not vm.store.left(CONNECTION):
            self._connected = adopt_connection(config.fd)
        self._front_ends = FrontEnds(vm, None)
        self._configuration = Configuration(config, vm, None)
        try:
            self._listen()
        except OperatorError as error:
            if not handed.is_restart:
                raise
            logger.error("%s: no other front end can come", error)
        if not vm.is_stuck:
            await self._take_over()
        self._metrics = Metrics(config, vm, handed.sockets.get(METRICS), self._stack)
        # Later than the front-end socket: whoever can reach it finds the VM listening.
        self._control = Control(config, vm, self._sockets, self._stack)
        await open_beside(self._metrics, self._control, guest_waits=handed.guest_waits)

    def _listen(self) -> None:
        """Listen for front ends, unless the one of --fd is the only one. Raises OperatorError."""
        if self._config.socket_path is not None:
            opened = self._sockets.open(self._config.socket_path, self._vm.settings.access)
            self._listening = self._stack.enter_context(opened)
            self._front_ends.listener = self._listening.listener
            self._configuration.listening = self._listening

    async def _take_over(self) -> None:
        await take_over(self._vm, self._left, self._config.arguments)
        if self._listening is not None:
            await self._listening.keep()

    async def serve(self, task_status: trio.TaskStatus[Vm]) -> None:
        vm, notifier = self._vm, self._notifier
        async with trio.open_nursery() as nursery:
            stop = nursery.cancel_scope.cancel

            def start(where: str, run: Callable[[], Awaitable[None]]) -> None:
                nursery.start_soon(vm.internal_errors.supervise, where, run)

            start("log", tell_losses)
            successor = Successor(notifier, vm, lambda: self._front_ends.is_arriving, self._sockets)
            start("upgrade", successor.run)
            hang_up = partial(successor.want, is_checked=False)
            await nursery.start(partial(follow_signals, stop, notifier, hang_up))
            interval = watchdog_interval()
            if interval is not None:
                start("watchdog", partial(notifier.feed_watchdog, interval))
            start("wakefulness", vm.wakefulness.run)
            if vm.store.active:
                start("store", vm.store.run)
            nursery.start_soon(self._serve_vm, stop)
            await self._ready.wait()
            # Those who connect meanwhile wait: an order to the VM finds it as it was left.
            commands = service_commands(self._configuration, successor)
            self._control.commands = {**COMMANDS, **commands}
            start("control", self._control.run)
            start("metrics", self._metrics.run)
            start("counters", partial(_save_counters, vm))
            start("status", partial(_keep_status, vm, notifier))
            logger.info("serving %s", vm.id)
            task_status.started(vm)
            await notifier.send(f"{READY}\n{status(summary(vm))}")

    async def _serve_vm(self, stop: Callable[[], None]) -> None:
        """Serve front ends; the one of --fd is the only one."""
        vm = self._vm
        if vm.is_stuck and self._lock is not None:
            self._ready.set()
            self._left = await wait_for_lock(vm, self._lock, self._left)
            await self._take_over()
        async with trio.open_nursery() as nursery:
            resumed = trio.Event()
            nursery.start_soon(self._sweep, resumed)
            areas = None if self._left is None else self._left.areas
            await self._front_ends.run(areas, self._connected, resumed.set)
            if self._config.socket_path is not None:
                await self._listen_again()
                await self._front_ends.run(None, None, resumed.set)
        stop()

    async def _listen_again(self) -> None:
        """Somebody took the path of the front end that has gone: listen once it can be had."""
        said = ""
        while self._listening is None:
            try:
                self._listen()
            except OperatorError as error:
                if str(error) != said:
                    logger.error("%s; it is tried again until it works", error)
                said = str(error)
                await trio.sleep(MISTAKE_PAUSE)
        await self._listening.keep()

    async def _sweep(self, resumed: trio.Event) -> None:
        """Forget what was left and is needed no more, once the VM is served again."""
        await resumed.wait()
        assert self._vm.shelf is not None
        self._vm.shelf.sweep()
        await self._sockets.sweep()
        await self._vm.store.sweep()
        self._ready.set()


async def _save_counters(vm: Vm) -> None:
    """What was counted and not shown yet is on record soon."""
    while vm.store.active:
        await vm.counted.wait()
        await trio.sleep(COUNTERS_PAUSE)
        vm.counted = trio.Event()
        vm.save_counters()


def summary(vm: Vm) -> str:
    """What `systemctl status` shows."""
    if vm.is_stuck:
        return "waiting for a process before this one, which cannot be killed"
    if vm.front_end is not None and not vm.front_end.has_device:
        return "a front end is answered without a device"
    return "a front end is attached" if vm.attached else "no front end is attached"


async def _keep_status(vm: Vm, notifier: Notifier) -> None:
    """What the service manager shows stays true."""
    told = summary(vm)
    while notifier:
        text = summary(vm)
        if text != told:
            await notifier.send(status(text))
            told = text
        await vm.status_changed.wait()
        vm.status_changed = trio.Event()


@dataclass(slots=True)
class Successor:
    """Becomes the program as it is installed now, once that is wanted."""

    notifier: Notifier
    vm: Vm
    is_arriving: Callable[[], bool]
    sockets: Sockets
    _wanted: trio.Event = field(default_factory=trio.Event)
    _is_checked: bool = False

    def want(self, *, is_checked: bool = True) -> None:
        """is_checked: whether it is known that it has all that it needs."""
        self._is_checked = is_checked
        self._wanted.set()

    async def check(self) -> None:
        """See that it has all that it needs, if nobody would start it again. Raises
        CommandError."""
        if self.vm.is_stuck:
            raise CommandError("a process before this one has the VM and cannot be killed")
        if not self.vm.store.active:
            await upgrade.check(self.sockets.handed_over())

    async def run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            try:
                if not self._is_checked:
                    await self.check()
                await self._become()
            except CommandError as error:
                logger.error("not re-executed: %s", error)

    async def _become(self) -> None:
        """Raises CommandError if it cannot be."""
        with trio.move_on_after(RELOADING_LIMIT):
            await self.notifier.send(reloading())
        try:
            await upgrade.execute(self.vm, self.is_arriving, self.sockets.handed_over())
        finally:
            await self.notifier.send(READY)

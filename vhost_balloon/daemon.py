"""Puts the parts together: listeners, VMs, control, signals, and the order of start and end."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from vhost_balloon import systemd, upgrade
from vhost_balloon.arguments import keep_arguments
from vhost_balloon.config import Config
from vhost_balloon.control_commands import COMMANDS
from vhost_balloon.control_fleet import fleet_commands
from vhost_balloon.errors import CommandError, OperatorError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.fleet import Fleet, serve_fd
from vhost_balloon.handed_over import HandedOver, take_sockets
from vhost_balloon.listeners import adopt_connection
from vhost_balloon.log import logger
from vhost_balloon.log_setup import tell_losses
from vhost_balloon.reload import Configuration
from vhost_balloon.side_services import Control, Metrics, open_beside
from vhost_balloon.sockets import Sockets
from vhost_balloon.store import PREFIX, Store
from vhost_balloon.systemd import (
    READY,
    STOPPING,
    Notifier,
    fdstore_limit,
    reloading,
    status,
    watchdog_interval,
)
from vhost_balloon.vm import Machine
from vhost_balloon.vm_spec import METRICS, RESERVED_NAMES, Origin, VmSpec

COUNTERS_INTERVAL: Final = 1.0
"""Seconds between two looks at counters that nobody asked for."""
RELOADING_LIMIT: Final = 1.0
"""Seconds that an upgrade waits for the service manager to take the news."""


@dataclass(frozen=True, slots=True)
class Handed:
    """Descriptors that this process was started with: listening sockets by name, and what the
    process before it had stored."""

    sockets: dict[str, HandedOver] = field(default_factory=dict)
    stored: tuple[tuple[str, OwnedFd], ...] = ()

    @property
    def is_restart(self) -> bool:
        """Whether a process before this one left anything."""
        return bool(self.stored)

    @property
    def guests_wait(self) -> bool:
        """Whether VMs were left, or may have begun to connect to a socket of the service manager:
        they would hang if this process ended."""
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
    task_status: trio.TaskStatus[Machine] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the daemon until SIGTERM or SIGINT. Raises OperatorError before anything is served.

    With a descriptor store nothing is shut down at the end: the next process goes on.
    """
    notifier, interval = Notifier(), watchdog_interval()
    store = Store(notifier, fdstore_limit(), handed.stored)
    machine = Machine(allow_unsealed_memory=config.allow_unsealed_memory, store=store)
    with ExitStack() as stack:
        stack.callback(notifier.close)
        sockets = Sockets(store, handed.sockets)
        fleet = stack.enter_context(Fleet(machine, sockets, config.control_path))
        await store.open_pipe()
        await keep_arguments(store, config.arguments)
        await fleet.inherit()
        add_configured(config, fleet)
        fleet.resume()
        metrics = Metrics(config, machine, handed.sockets.get(METRICS), stack)
        # Later than the front-end sockets: whoever can reach it finds all VMs listening.
        control = Control(config, machine, sockets, stack)
        await open_beside(metrics, control, guests_wait=handed.guests_wait)
        stream = None
        if config.fd is not None and config.vms[0].id not in machine.vms:
            stream = adopt_connection(config.fd)
        try:
            async with trio.open_nursery() as nursery:
                stop = nursery.cancel_scope.cancel
                if config.fd is not None:
                    fleet.gone = stop

                def start(where: str, run: Callable[[], Awaitable[None]]) -> None:
                    nursery.start_soon(machine.internal_errors.supervise, where, run)

                start("heartbeat", machine.heartbeat.run)
                start("store", store.run)
                start("log", tell_losses)
                successor = Successor(notifier, machine, sockets)
                start("upgrade", successor.run)
                await nursery.start(_follow_signals, stop, notifier, successor)
                if interval is not None:
                    start("watchdog", partial(notifier.feed_watchdog, interval))
                if stream is not None:
                    nursery.start_soon(serve_fd, machine.add(config.vms[0]), stream, stop)
                fleet.start(nursery)
                await fleet.ready()
                # Those who connect meanwhile wait: an order to a VM finds it as it was left.
                own = fleet_commands(fleet, Configuration(config, fleet), successor)
                control.commands = {**COMMANDS, **own}
                start("control", control.run)
                start("metrics", metrics.run)
                start("counters", partial(_save_counters, machine))
                start("status", partial(_keep_status, machine, notifier))
                logger.info("serving %s", ", ".join(machine.vms) or "no VM yet")
                task_status.started(machine)
                await notifier.send(f"{READY}\n{status(summary(machine))}")
        finally:
            # Also if a bug ends it: whoever comes next finds everything as it is now.
            store.leaving = store.active
            for vm in machine.vms.values():
                vm.save_counters()


async def _save_counters(machine: Machine) -> None:
    """What was counted and not shown yet is on record soon."""
    while machine.store.active:
        await trio.sleep(COUNTERS_INTERVAL)
        for vm in machine.vms.values():
            vm.save_counters()


def summary(machine: Machine) -> str:
    """What `systemctl status` shows."""
    vms = machine.vms.values()
    inert = sum(vm.inert is not None for vm in vms)
    text = (
        f"serving {len(vms)} VM{'s' * (len(vms) != 1)}, {sum(vm.attached for vm in vms)} attached"
    )
    return f"{text}, {inert} inert" if inert else text


async def _keep_status(machine: Machine, notifier: Notifier) -> None:
    """What the service manager shows is true within a second."""
    told = summary(machine)
    while notifier:
        await trio.sleep(COUNTERS_INTERVAL)
        text = summary(machine)
        if text != told:
            await notifier.send(status(text))
            told = text


def add_configured(config: Config, fleet: Fleet) -> None:
    """Add the VMs of the command line and of the file. Raises OperatorError.

    Where VMs were left a mistake is logged instead, since their guests wait: without its file they
    go on as they were left, and one that cannot be added stays until its front end goes.
    """
    is_restart = fleet.has_left()
    specs = list(config.vms)
    if config.mistake is not None:
        logger.error("the VMs of --config go on as they were: %s", config.mistake)
        before = fleet.configured_before()
        paths = [spec.socket_path for spec in before]
        specs = [spec for spec in specs if spec.socket_path not in paths] + before
    for spec in specs:
        if spec.socket_path is not None:
            try:
                with blame(config, spec):
                    fleet.add(spec)
            except OperatorError as error:
                if not is_restart:
                    raise
                logger.error("%s", error)


def blame(config: Config, spec: VmSpec) -> AbstractContextManager[None]:
    """Have an OperatorError say where a VM comes from, if that is a line of the file."""
    if config.file is None or config.mistake is not None or spec.origin is not Origin.CONFIG:
        return nullcontext()
    return config.file.blamed(spec)


@dataclass(slots=True)
class Successor:
    """Becomes the program as it is installed now, once that is wanted."""

    notifier: Notifier
    machine: Machine
    sockets: Sockets
    _wanted: trio.Event = field(default_factory=trio.Event)
    _is_checked: bool = False

    def want(self, *, is_checked: bool = True) -> None:
        """is_checked: whether it is known that it has all that it needs."""
        self._is_checked = is_checked
        self._wanted.set()

    async def check(self) -> None:
        """See that it has all that it needs. Raises CommandError."""
        await upgrade.check(self.machine, self.sockets)

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
            await upgrade.execute(self.machine, self.sockets)
        finally:
            await self.notifier.send(READY)


async def _follow_signals(
    stop: Callable[[], None],
    notifier: Notifier,
    successor: Successor,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP:
                successor.want(is_checked=False)
                continue
            logger.info("ending on %s", signal.Signals(number).name)
            notifier.try_send(STOPPING)
            stop()

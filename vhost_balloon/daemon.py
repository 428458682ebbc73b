"""Puts the parts together: listeners, VMs, control, signals, and the order of start and end."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from vhost_balloon import systemd, upgrade
from vhost_balloon.config import Config, MetricsOptions
from vhost_balloon.control import serve_control
from vhost_balloon.control_commands import COMMANDS
from vhost_balloon.control_fleet import fleet_commands
from vhost_balloon.errors import CommandError, OperatorError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.fleet import Fleet, serve_fd
from vhost_balloon.handed_over import HandedOver, take_sockets
from vhost_balloon.listeners import adopt_connection
from vhost_balloon.log import logger
from vhost_balloon.reload import Configuration
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
from vhost_balloon.vm_spec import METRICS, Origin, VmSpec

if TYPE_CHECKING:
    from vhost_balloon.metrics_server import MetricsServer


COUNTERS_INTERVAL: Final = 1.0
"""Seconds between two looks at counters that nobody asked for."""


@dataclass(frozen=True, slots=True)
class Handed:
    """Descriptors that this process was started with: listening sockets by name, and what the
    process before it had stored."""

    sockets: dict[str, HandedOver] = field(default_factory=dict)
    stored: tuple[tuple[str, OwnedFd], ...] = ()


NOTHING: Final = Handed()


def handed_over() -> Handed:
    """What the service manager, or this program itself, handed over. Raises OperatorError."""
    found = [*systemd.inherited(), *upgrade.inherited()]
    stored = tuple((name, fd) for name, fd in found if name.startswith(PREFIX))
    return Handed(take_sockets(found), stored)


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
        await fleet.inherit()
        add_configured(config, fleet)
        fleet.resume()
        metrics = None
        if config.metrics is not None:
            metrics = await open_metrics(config.metrics, machine, handed.sockets.get(METRICS))
            stack.callback(metrics.close)
        # Later than the front-end sockets: whoever can reach it finds all VMs listening.
        control = None
        if config.control_path is not None:
            control = stack.enter_context(sockets.open(config.control_path, config.control_access))
        stream = None
        if config.fd is not None and config.vms[0].id not in machine.vms:
            stream = adopt_connection(config.fd)
        try:
            async with trio.open_nursery() as nursery:
                stop = nursery.cancel_scope.cancel
                if config.fd is not None:
                    fleet.gone = stop
                nursery.start_soon(machine.heartbeat.run)
                nursery.start_soon(store.run)
                successor = Successor(notifier, machine, sockets)
                nursery.start_soon(successor.run)
                await nursery.start(_follow_signals, stop, notifier, successor)
                if interval is not None:
                    nursery.start_soon(notifier.feed_watchdog, interval)
                if stream is not None:
                    nursery.start_soon(serve_fd, machine.add(config.vms[0]), stream, stop)
                fleet.start(nursery)
                await fleet.ready()
                # Those who connect meanwhile wait: an order to a VM finds it as it was left.
                if control is not None:
                    await control.keep()
                    own = fleet_commands(fleet, Configuration(config, fleet), successor.want)
                    commands = {**COMMANDS, **own}
                    serve = partial(serve_control, control.listener, machine, commands=commands)
                    nursery.start_soon(serve)
                if metrics is not None:
                    nursery.start_soon(metrics.run)
                nursery.start_soon(_save_counters, machine)
                nursery.start_soon(_keep_status, machine, notifier)
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


async def open_metrics(
    options: MetricsOptions, machine: Machine, handed: HandedOver | None
) -> MetricsServer:
    """Listen for Prometheus, if what was handed over does not do so already. Raises
    OperatorError."""
    # Imported only where it is asked for: the client library costs start time and memory.
    from vhost_balloon.metrics_server import MetricsServer

    return await MetricsServer.open(
        options,
        lambda: [vm.statistics(details=False) for vm in machine.vms.values()],
        None if handed is None else handed.listener(),
    )


@dataclass(slots=True)
class Successor:
    """Becomes the program as it is installed now, once that is wanted."""

    notifier: Notifier
    machine: Machine
    sockets: Sockets
    wanted: trio.Event = field(default_factory=trio.Event)

    def want(self) -> None:
        self.wanted.set()

    async def run(self) -> None:
        while True:
            await self.wanted.wait()
            self.wanted = trio.Event()
            await self.notifier.send(reloading())
            try:
                await upgrade.execute(self.machine, self.sockets)
            except CommandError as error:
                logger.error("not re-executed: %s", error)
            await self.notifier.send(READY)

    async def check(self) -> None:
        """Want it if it starts; else that is logged, and nothing changes."""
        try:
            await upgrade.check()
        except CommandError as error:
            logger.error("not re-executed: %s", error)
        else:
            self.want()


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
                await successor.check()
                continue
            logger.info("ending on %s", signal.Signals(number).name)
            notifier.try_send(STOPPING)
            stop()

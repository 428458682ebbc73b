"""Puts the parts together: listeners, VMs, control, signals, and the order of start and end."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import trio

from vhost_balloon.config import Config, MetricsOptions
from vhost_balloon.control import serve_control
from vhost_balloon.control_commands import COMMANDS
from vhost_balloon.control_fleet import fleet_commands
from vhost_balloon.fleet import Fleet, serve_fd
from vhost_balloon.listeners import adopt_connection, open_unix_listener
from vhost_balloon.log import logger
from vhost_balloon.reload import Configuration
from vhost_balloon.vm import Machine
from vhost_balloon.vm_spec import Origin, VmSpec

if TYPE_CHECKING:
    from vhost_balloon.metrics_server import MetricsServer


async def run(
    config: Config, task_status: trio.TaskStatus[Machine] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run the daemon until SIGTERM or SIGINT. Raises OperatorError before anything is served."""
    machine = Machine(allow_unsealed_memory=config.allow_unsealed_memory)
    with ExitStack() as sockets:
        fleet = sockets.enter_context(Fleet(machine, config.control_path))
        for spec in config.vms:
            if spec.socket_path is not None:
                with blame(config, spec):
                    fleet.add(spec)
        metrics = None
        if config.metrics is not None:
            metrics = await open_metrics(config.metrics, machine)
            sockets.callback(metrics.close)
        # Later than the front-end sockets: whoever can reach it finds all VMs listening.
        control = None
        if config.control_socket is not None:
            control = sockets.enter_context(
                open_unix_listener(config.control_socket, config.control_access)
            )
        stream = None if config.fd is None else adopt_connection(config.fd)
        async with trio.open_nursery() as nursery:
            stop = nursery.cancel_scope.cancel
            nursery.start_soon(machine.heartbeat.run)
            await nursery.start(_stop_on_signal, stop)
            if stream is not None:
                nursery.start_soon(serve_fd, machine.add(config.vms[0]), stream, stop)
            fleet.start(nursery)
            if control is not None:
                commands = {**COMMANDS, **fleet_commands(fleet, Configuration(config, fleet))}
                nursery.start_soon(partial(serve_control, control, machine, commands=commands))
            if metrics is not None:
                nursery.start_soon(metrics.run)
            logger.info("serving %s", ", ".join(machine.vms) or "no VM yet")
            task_status.started(machine)


def blame(config: Config, spec: VmSpec) -> AbstractContextManager[None]:
    """Have an OperatorError say where a VM comes from, if that is a line of the file."""
    if config.file is None or spec.origin is not Origin.CONFIG:
        return nullcontext()
    return config.file.blamed(spec)


async def open_metrics(options: MetricsOptions, machine: Machine) -> MetricsServer:
    """Listen for Prometheus. Raises OperatorError."""
    # Imported only where it is asked for: the client library costs start time and memory.
    from vhost_balloon.metrics_server import MetricsServer

    return await MetricsServer.open(
        options, lambda: [vm.statistics(details=False) for vm in machine.vms.values()]
    )


async def _stop_on_signal(
    stop: Callable[[], None], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            logger.info("ending on %s", signal.Signals(number).name)
            stop()

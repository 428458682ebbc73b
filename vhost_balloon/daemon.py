"""Puts the parts together: listeners, VMs, control, signals, and the order of start and end."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import trio

from vhost_balloon.backend import serve_front_end
from vhost_balloon.config import Config, MetricsOptions
from vhost_balloon.control import serve_control
from vhost_balloon.listeners import adopt_connection, open_unix_listener
from vhost_balloon.log import logger
from vhost_balloon.vm import Machine, Vm

if TYPE_CHECKING:
    from vhost_balloon.metrics_server import MetricsServer

ACCEPT_PAUSE: Final = 0.1
"""Seconds to wait when this process or the host has no descriptors or memory left."""

_EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


async def serve_vm(vm: Vm, listener: trio.SocketListener) -> None:
    """Serve one front end after the other; the next waits in the backlog meanwhile."""
    while True:
        try:
            stream = await listener.accept()
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            vm.log.misbehaved(f"front end has to wait: {error.strerror}")
            await trio.sleep(ACCEPT_PAUSE)
            continue
        await serve_front_end(vm, stream)


async def serve_fd(vm: Vm, stream: trio.SocketStream, done: Callable[[], None]) -> None:
    """Serve the one front end of --fd; the daemon's work is done with it."""
    await serve_front_end(vm, stream, peer_connected=False)
    done()


async def run(
    config: Config, task_status: trio.TaskStatus[Machine] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run the daemon until SIGTERM or SIGINT. Raises OperatorError before anything is served."""
    machine = Machine()
    paths = config.socket_paths or (None,)
    vms = [
        machine.add(vm_id, config.settings, path)
        for vm_id, path in zip(config.vm_ids(), paths, strict=True)
    ]
    with ExitStack() as sockets:
        listeners = [
            sockets.enter_context(open_unix_listener(path, config.front_end_access))
            for path in config.socket_paths
        ]
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
                nursery.start_soon(serve_fd, vms[0], stream, stop)
            for vm, listener in zip(vms, listeners, strict=False):
                nursery.start_soon(serve_vm, vm, listener)
            if control is not None:
                nursery.start_soon(serve_control, control, machine)
            if metrics is not None:
                nursery.start_soon(metrics.run)
            logger.info("serving %s", ", ".join(machine.vms))
            task_status.started(machine)


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

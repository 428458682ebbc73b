"""Services beside the VM: the metrics address and the control socket.

At a fresh start a mistake in their options ends the daemon, because the operator is there to
correct it. If a guest waits, its VM is served without them, and they are tried again until they
work (containment.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from protocol.qmp import Object
from vhost_balloon.config.config import Config
from vhost_balloon.containment import KeptOpen
from vhost_balloon.control.report import describe_vm
from vhost_balloon.control.server import serve_control
from vhost_balloon.daemon.sockets import Listening, Sockets
from vhost_balloon.errors import OperatorError
from vhost_balloon.qmp_server.command import Command
from vhost_balloon.service.handed_over import HandedOver
from vhost_balloon.vm.vm import Vm

if TYPE_CHECKING:
    from vhost_balloon.metrics.server import MetricsServer


class Metrics:
    """The metrics address; what it opens is closed with stack."""

    def __init__(self, config: Config, vm: Vm, handed: HandedOver | None, stack: ExitStack) -> None:
        """handed: a socket that listens already."""
        self._options: Final = config.metrics
        self._vm: Final = vm
        self._handed: Final = handed
        self._stack: Final = stack
        self._server: MetricsServer | None = None

    async def open(self) -> None:
        """Listen, if this is configured and not done yet. Raises OperatorError."""
        if self._options is None or self._server is not None:
            return
        # Imported on demand: the client library costs start time and memory.
        from vhost_balloon.metrics.server import MetricsServer

        self._server = await MetricsServer.open(
            self._options,
            self._snapshots,
            self._vm.internal_errors,
            None if self._handed is None else self._handed.listener(),
        )
        self._stack.callback(self._server.close)

    async def _snapshots(self) -> list[tuple[str, Object]]:
        return [(self._vm.id, describe_vm(self._vm.statistics()))]

    async def run(self) -> None:
        """Serve until cancelled; may be called again after a failure. Raises OperatorError."""
        await self.open()
        if self._server is not None:
            await self._server.run()


class Control:
    """The control socket; it is closed with stack."""

    def __init__(self, config: Config, vm: Vm, sockets: Sockets, stack: ExitStack) -> None:
        self._config: Final = config
        self._vm: Final = vm
        self._sockets: Final = sockets
        self._stack: Final = stack
        self._listening: Listening | None = None
        self.commands: Mapping[str, Command[Vm]] = {}

    def open(self) -> None:
        """Listen, if this is configured and not done yet. Raises OperatorError."""
        path = self._config.control_path
        if path is not None and self._listening is None:
            opened = self._sockets.open(path, self._config.control_access)
            self._listening = self._stack.enter_context(opened)

    async def run(self) -> None:
        """Serve until cancelled; may be called again after a failure. Raises OperatorError."""
        self.open()
        if self._listening is None:
            return
        await self._listening.keep()
        listener = KeptOpen(self._listening.listener)
        await serve_control(listener, self._vm, commands=self.commands)


async def open_beside(metrics: Metrics, control: Control, *, guest_waits: bool) -> None:
    """Open both before anything is served. Raises OperatorError.

    If a guest waits, run() reports mistakes and tries again, and the guest does not wait for the
    name of a metrics address to be resolved.
    """
    if not guest_waits:
        await metrics.open()
        control.open()
    else:
        with suppress(OperatorError):
            control.open()  # now: a socket that was left would be dropped later

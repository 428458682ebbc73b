"""The hub's control socket, RUN_FOLDER/control: commands and the event of the policy."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import trio

from protocol import qmp
from protocol.qmp import Json
from vhost_balloon.containment import InternalErrors, KeptOpen
from vhost_balloon.hub.commands import COMMANDS, Hub
from vhost_balloon.hub.events import EVENT, ordered
from vhost_balloon.policy.decide import HostState
from vhost_balloon.policy.past import Order
from vhost_balloon.qmp_server.command import Command
from vhost_balloon.qmp_server.server import QmpServer
from vhost_balloon.service.listeners import SocketOptions, listen

NAME: Final = "control"
MAX_CLIENTS: Final = 64


class Control:
    """The control socket, which need not be opened."""

    def __init__(self, errors: InternalErrors) -> None:
        self._errors: Final = errors
        self._server: QmpServer[Hub] | None = None
        self._listener: trio.SocketListener

    def open(self, hub: Hub, folder: Path, access: SocketOptions, stack: ExitStack) -> None:
        """Listen in folder, until the end of stack. Raises OperatorError."""
        sock, file = listen(folder / NAME, access)
        stack.callback(file.close)
        stack.callback(file.remove)
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        stack.callback(self._listener.socket.close)
        self._server = QmpServer(hub, COMMANDS, _describe, self._errors, most=MAX_CLIENTS)

    async def run(self) -> None:
        """Serve until cancelled, if it is open; may be called again after a failure."""
        if self._server is not None:
            await self._server.run(KeptOpen(self._listener))

    def announce(self, host: HostState, orders: Sequence[Order]) -> None:
        """Send every client the orders of a tick."""
        if self._server is not None:
            self._server.broadcast(qmp.event(EVENT, ordered(host, orders), time.time()))


def _describe(commands: Mapping[str, Command[Hub]]) -> Json:
    from vhost_balloon.hub.schema import describe  # rarely needed

    return describe(commands)

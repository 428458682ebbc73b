"""A connection to a VM's daemon that is kept, and opened again when the daemon was restarted."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import trio

from protocol.qmp import Object
from vhost_balloon.hub.connection import Connection, Ended, Refused, Unanswered
from vhost_balloon.hub.folders import Found


@dataclass(slots=True)
class Shared:
    """What all links have in common. turn: see Connection.open(). hangs: the sockets' file system
    does, so that opening a connection would stop the hub."""

    turn: trio.Lock = field(default_factory=trio.Lock)
    hangs: bool = False


class Link:
    """found: the VM's socket."""

    def __init__(self, found: Found, shared: Shared) -> None:
        self.found: Final = found
        self._shared: Final = shared
        self._connection: Connection | None = None

    def close(self) -> None:
        """Close the connection; the next execute() opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def execute(self, command: str, arguments: Object | None = None) -> Any:
        """The command's result, any JSON value. It may be carried out twice.

        Raises Unanswered or OSError. The caller limits the time.
        """
        if self._connection is not None:
            try:
                return await self._try(command, arguments)
            except (Ended, OSError):
                pass  # for example, the daemon was restarted
        if self._shared.hangs:
            raise Unanswered("the file system of its socket hangs")
        self._connection = Connection.open(self.found.path, self._shared.turn)
        return await self._try(command, arguments)

    async def _try(self, command: str, arguments: Object | None) -> Any:
        """Ask once. Without a complete answer the connection is closed."""
        assert self._connection is not None
        try:
            return await self._connection.execute(command, arguments)
        except Refused:
            raise
        except BaseException:
            self.close()
            raise

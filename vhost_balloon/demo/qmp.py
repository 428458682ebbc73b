"""A QMP client for the demo.

vhost-balloonctl's client blocks; here two tasks share a connection while the picture is drawn.
"""

from __future__ import annotations

import json
import os
from typing import Any

import trio

from vhost_balloon.demo.errors import DemoError


class QmpClient:
    """A connection to the daemon's control socket. An async context manager."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""
        self._lock = trio.Lock()

    @classmethod
    async def connect(cls, path: str | os.PathLike[str]) -> QmpClient:
        """Connect and negotiate.

        Raises:
            OSError: nothing listens at `path`.
            DemoError: the server does not speak QMP.
        """
        return await cls.negotiate(await trio.open_unix_socket(os.fspath(path)))

    @classmethod
    async def negotiate(cls, stream: trio.SocketStream) -> QmpClient:
        """Take over a connected stream and negotiate.

        Raises:
            DemoError: the server does not speak QMP.
        """
        client = cls(stream)
        await client._receive()
        await client.execute("qmp_capabilities")
        return client

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command and return its "return" value. Events are dropped.

        Raises:
            DemoError: the command failed, or the daemon has gone.
        """
        async with self._lock:
            request = {"execute": command, "arguments": arguments}
            try:
                await self._stream.send_all(json.dumps(request).encode() + b"\n")
            except trio.BrokenResourceError:
                raise DemoError("the daemon has gone") from None
            while True:
                message = await self._receive()
                if "error" in message:
                    raise DemoError(f"{command}: {message['error'].get('desc')}")
                if "return" in message:
                    return message["return"]

    async def __aenter__(self) -> QmpClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stream.aclose()

    async def _receive(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            try:
                data = await self._stream.receive_some()
            except trio.BrokenResourceError:
                data = b""
            if not data:
                raise DemoError("the daemon has gone")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:
            raise DemoError("the control socket does not speak QMP") from None
        return message

"""The demo's QMP client."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
import trio
import trio.testing

from vhost_balloon.demo.errors import DemoError
from vhost_balloon.demo.qmp import QmpClient


async def request(stream: trio.SocketStream) -> Any:
    """Return the next request of the client."""
    line = b""
    while not line.endswith(b"\n"):
        line += await stream.receive_some(1)
    return json.loads(line)


async def test_the_client_negotiates_and_skips_events() -> None:
    ours, theirs = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    seen: list[Any] = []

    async def server() -> None:
        stream = trio.SocketStream(theirs)
        await stream.send_all(b'{"QMP": {"version": {}, "capabilities": []}}\r\n')
        seen.append(await request(stream))
        await stream.send_all(b'{"return": {}}\r\n')
        seen.append(await request(stream))
        await stream.send_all(b'{"event": "BALLOON_CHANGE"}\r\n{"return"')
        await stream.send_all(b": [1]}\r\n")
        seen.append(await request(stream))
        await stream.send_all(b'{"error": {"class": "DeviceNotActive", "desc": "no"}}\r\n')
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server)
        async with await QmpClient.negotiate(trio.SocketStream(ours)) as client:
            assert await client.execute("query-vms") == [1]
            with pytest.raises(DemoError, match="balloon: no"):
                await client.execute("balloon", value=1)
            with pytest.raises(DemoError, match="daemon has gone"):
                await client.execute("query-vms")
    assert seen[0]["execute"] == "qmp_capabilities"
    assert seen[2] == {"execute": "balloon", "arguments": {"value": 1}}

"""A daemon of one VM in this process, and a client of its control socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.support.control_client import Client
from tests.support.end_to_end import Host, serving


@asynccontextmanager
async def operated(folder: Path, *options: str) -> AsyncIterator[tuple[Host, Client]]:
    """The VM is vm1, its control socket folder/control."""
    control = folder / "control"
    async with (
        serving(folder, f"--control-socket={control}", *options) as host,
        await trio.open_unix_socket(control) as stream,
    ):
        client = Client(stream)
        await client.negotiate()
        yield host, client

"""Runs the daemon for the demo."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from vhost_balloon.demo.errors import DemoError
from vhost_balloon.demo.qmp import QmpClient

START_SECONDS: Final = 15.0
"""How long the daemon may take to listen, on a busy machine."""
STOP_SECONDS: Final = 5.0


@asynccontextmanager
async def running_daemon(folder: Path, reporting: bool) -> AsyncIterator[QmpClient]:
    """Run the daemon with its front-end socket at folder/demo.sock.

    Raises:
        DemoError: it does not start.
    """
    control, log = folder / "control.sock", folder / "daemon.log"
    command = [
        *(sys.executable, "-m", "vhost_balloon"),
        f"--socket-path={folder / 'demo.sock'}",
        f"--control-socket={control}",
        *([] if reporting else ["--no-reporting"]),
    ]
    with log.open("wb") as output:
        # In a new session, as Ctrl-C is for us only: we end the daemon in order.
        process = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        async with await _connect(process, control, log) as qmp:
            yield qmp
    finally:
        await _stop(process)


async def _connect(process: trio.Process, control: Path, log: Path) -> QmpClient:
    """Wait until the daemon listens. It opens the control socket last."""
    with trio.move_on_after(START_SECONDS):
        while process.poll() is None:
            try:
                return await QmpClient.connect(control)
            except OSError:
                await trio.sleep(0.05)
    last = (await trio.Path(log).read_text(errors="replace")).strip().rpartition("\n")[2]
    raise DemoError(f"the daemon did not start: {last or 'it logged nothing'}")


async def _stop(process: trio.Process) -> None:
    with trio.CancelScope(shield=True):
        process.terminate()
        with trio.move_on_after(STOP_SECONDS):
            await process.wait()
        process.kill()
        await process.wait()

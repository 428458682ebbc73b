"""Runs the daemon, or another program with a control socket, for the demo."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
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
async def running_daemon(
    folder: Path, reporting: bool, name: str = "demo", *options: str
) -> AsyncIterator[QmpClient]:
    """Run the daemon with its front-end socket at folder/NAME.sock.

    Raises:
        DemoError: it does not start.
    """
    control = folder / f"{name}.control"
    command = [
        *("-m", "vhost_balloon"),
        f"--socket-path={folder / name}.sock",
        f"--control-socket={control}",
        *([] if reporting else ["--no-reporting"]),
        *options,
    ]
    async with running_program(command, control, folder / f"{name}.log") as qmp:
        yield qmp


@asynccontextmanager
async def running_program(
    arguments: Sequence[str], control: Path, log: Path
) -> AsyncIterator[QmpClient]:
    """Run Python with these arguments until the end, and connect to its control socket.

    Raises:
        DemoError: it does not start.
    """
    with log.open("wb") as output:
        # In a new session, as Ctrl-C is for us only: we end the program in order.
        process = await trio.lowlevel.open_process(
            [sys.executable, *arguments],
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
    raise DemoError(f"{log.stem} did not start: {last or 'it logged nothing'}")


async def _stop(process: trio.Process) -> None:
    with trio.CancelScope(shield=True):
        process.terminate()
        with trio.move_on_after(STOP_SECONDS):
            await process.wait()
        process.kill()
        await process.wait()

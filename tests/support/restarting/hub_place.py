"""The hub as a process, with folders, files and a host's memory of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, Any

import trio

from tests.support.control_client import GIB, Client, request

WELL = 7 * GIB
SHORT = GIB
"""Of 16 GiB, with the default reserve of 2.3 GiB."""


class HubPlace:
    """Folders, files and the service manager's socket of a hub."""

    def __init__(self, folder: Path) -> None:
        self.vms, self.run = folder / "vms", folder / "run"
        self.vms.mkdir()
        self.run.mkdir()
        self.meminfo, self.config = folder / "meminfo", folder / "hub.toml"
        self.host_has(WELL)
        self.configure("off")
        self.notify = folder / "notify"

    def host_has(self, available: int) -> None:
        """Write meminfo in place: the hub has it open."""
        text = f"MemTotal: {16 * GIB >> 10} kB\nMemAvailable: {available >> 10} kB\n"
        self.meminfo.write_text(text)

    def configure(self, mode: str) -> None:
        self.config.write_text(f'[policy]\nmode = "{mode}"\n')

    @contextmanager
    def hub(self, *arguments: str, **more: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
        """A hub that was given meminfo by the service manager; it, and its log.

        more: variables of its environment.
        """
        options = (f"--folder={self.vms}", f"--run-folder={self.run}", f"--config={self.config}")
        command = [sys.executable, "-m", "vhost_balloon.hub", "--metrics-address=:0", *options]
        command += arguments
        with self.meminfo.open() as file:
            program = (
                "import os, sys\n"
                f"os.dup2({file.fileno()}, 3)\n"
                "os.environ['LISTEN_PID'] = str(os.getpid())\n"
                f"os.execv(sys.executable, {command!r})"
            )
            started = subprocess.Popen(
                [sys.executable, "-c", program],
                env=os.environ | {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "meminfo"} | more,
                stderr=subprocess.PIPE,
                pass_fds=[file.fileno()],
                text=True,
            )
        with started as process:
            try:
                assert process.stderr is not None
                yield process, process.stderr
            finally:
                process.kill()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A client of the hub, as soon as it listens."""
        with trio.fail_after(20):
            while True:
                try:
                    stream = await trio.open_unix_socket(str(self.run / "control"))
                except OSError:
                    await trio.sleep(0.02)
                else:
                    break
        async with stream:
            client = Client(stream)
            await client.negotiate()
            yield client

    def locked(self, process: subprocess.Popen[str]) -> bool:
        """Whether the hub has the lock's file open."""
        folder = Path(f"/proc/{process.pid}/fd")
        return any("policy.lock" in os.readlink(link) for link in folder.iterdir())


async def ask(client: Client, command: str, **arguments: Any) -> Any:
    """The "return" of a command; events before it are skipped."""
    answer = await client.raw(request(command, **arguments))
    while "event" in answer:
        answer = await client.read()
    return answer["return"]


async def policy(client: Client, holds: Callable[[Any], bool]) -> dict[str, Any]:
    """The answer to query-policy, as soon as it is as wanted."""
    with trio.fail_after(20):
        while True:
            told: dict[str, Any] = await ask(client, "query-policy")
            if holds(told):
                return told
            await trio.sleep(0.05)


async def until_reason(client: Client, reason: str) -> dict[str, Any]:
    """The answer, as soon as this is the reason of the one VM."""
    return await policy(client, lambda told: [vm["reason"] for vm in told["vms"]] == [reason])


def until_line(log: IO[str], text: str) -> None:
    while text not in (line := log.readline()):
        assert line, "the hub ended"

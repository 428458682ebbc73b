"""vhost-balloonctl watch without a terminal, against daemons."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from tests.rig.process import fds
from tests.support.ctl_command import CTL, ctl, vm_served


async def test_watch_without_a_terminal(tmp_path: Path) -> None:
    async with vm_served(tmp_path, "vm1"), vm_served(tmp_path, "vm2"):
        done = await ctl(tmp_path, "watch", "--count=2", "--interval=0.1")
        assert done.status == 0
        blocks = done.out.split("\n\n")
        assert len(blocks) == 2
        assert all(block.splitlines()[2].startswith("vm1  disconnected") for block in blocks)
        done = await ctl(tmp_path, "watch", "--json", "--count=3", "--interval=0.01")
        samples = [json.loads(line) for line in done.out.splitlines()]
        assert [[vm["id"] for vm in vms] for vms in samples] == [["vm1", "vm2"]] * 3


async def test_watch_finds_vms_that_come_and_go(tmp_path: Path) -> None:
    async with watching(f"--folder={tmp_path}") as watch:
        await watch.until([])
        async with vm_served(tmp_path, "vm1"):
            await watch.until(["vm1"])
            async with vm_served(tmp_path, "vm2"):
                await watch.until(["vm1", "vm2"])
            await watch.until(["vm1"])
        await watch.until([])
        async with vm_served(tmp_path, "vm1"):
            await watch.until(["vm1"])


async def test_watch_keeps_its_connections(tmp_path: Path) -> None:
    async with vm_served(tmp_path), watching(f"--folder={tmp_path}") as watch:
        await watch.until(["vm1"])
        found = connections(watch.process.pid)
        assert len(found) == 1
        for _ in range(3):
            await watch.until(["vm1"])
            assert connections(watch.process.pid) == found


async def test_watch_of_one_control_socket_ends_with_its_daemon(tmp_path: Path) -> None:
    option = f"--control-socket={tmp_path}/vm1.control"
    async with AsyncExitStack() as daemon:
        await daemon.enter_async_context(vm_served(tmp_path))
        async with watching(option) as watch:
            await watch.until(["vm1"])
            await daemon.aclose()
            assert await watch.process.wait() == 1
            assert watch.process.stderr is not None
            text = b"".join([part async for part in watch.process.stderr]).decode()
    assert text.count("\n") == 1
    assert text.startswith(f"vhost-balloonctl: {tmp_path}/vm1.control: ")


class Watch:
    """A running `watch --json`."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdout is not None
        self.process = process
        self._stdout = process.stdout
        self._text = b""

    async def until(self, names: list[str]) -> None:
        """Read lines until one has these VMs, each with an answer."""
        with trio.fail_after(20):
            while True:
                vms = await self._line()
                if [vm["id"] for vm in vms if "error" not in vm] == names:
                    return

    async def _line(self) -> list[dict[str, Any]]:
        while b"\n" not in self._text:
            part = await self._stdout.receive_some(65536)
            assert part, "watch has ended"
            self._text += part
        line, _, self._text = self._text.partition(b"\n")
        found: list[dict[str, Any]] = json.loads(line)
        return found


@asynccontextmanager
async def watching(where: str) -> AsyncIterator[Watch]:
    """Run `watch --json` every 50 ms; kill it at the end."""
    process = await trio.lowlevel.open_process(
        [*CTL, where, "watch", "--json", "--interval=0.05"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield Watch(process)
    finally:
        process.kill()
        await process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                await stream.aclose()


def connections(pid: int) -> set[str]:
    """Return a process's sockets."""
    return {link for link in fds(pid).values() if link.startswith("socket:")}


async def test_a_reader_that_goes_away_ends_watch_quietly(tmp_path: Path) -> None:
    async with vm_served(tmp_path):
        process = await trio.lowlevel.open_process(
            [*CTL, f"--folder={tmp_path}", "watch", "--interval=0.01"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        assert await process.stdout.receive_some(100)
        await process.stdout.aclose()
        async with process.stderr:
            assert b"".join([part async for part in process.stderr]) == b""
        assert await process.wait() == 141

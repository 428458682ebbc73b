"""The demo with a real guest: the same script and display as vhost-balloon-demo."""

from __future__ import annotations

import itertools
import sys
from typing import Final

import trio

from tests.rig.daemon import Daemon
from tests.rig.errors import GuestError
from tests.rig.guest import Guest
from tests.rig.memory import Memory, MiB
from vhost_balloon.demo import picture
from vhost_balloon.demo.errors import DemoError
from vhost_balloon.demo.history import History
from vhost_balloon.demo.player import FREE_MARK, PLAY_SECONDS, play
from vhost_balloon.demo.qmp import QmpClient
from vhost_balloon.demo.screen import Screen
from vhost_balloon.sizes import format_size

SECONDS: Final = 2 * PLAY_SECONDS
"""An emulated processor is slow."""


class RealGuest:
    """A booted guest as the demo sees it; its applications keep files on a tmpfs."""

    def __init__(self, guest: Guest, daemon: Daemon) -> None:
        self._guest = guest
        self._qmp = daemon.qmp()
        self._files = itertools.count(1)

    @property
    def memory(self) -> int:
        return self._guest.memory.size

    async def boot(self) -> None:
        """Do nothing: the guest already runs, and the display starts with its kernel up."""

    async def touch(self, size: int) -> None:
        file = f"/tmp/demo-{next(self._files)}"
        command = f"dd if=/dev/zero of={file} bs=64k count={-(-size // 65536)} 2>/dev/null"
        await self._run(command)

    async def free(self) -> None:
        await self._run("rm -f /tmp/demo-*")

    async def in_use(self) -> int:
        """Memory neither free nor in the balloon; the kernel's own memory counts as used."""
        free = (await trio.to_thread.run_sync(self._guest.meminfo))["MemFree"]
        balloon = (await trio.to_thread.run_sync(self._qmp.execute, "query-vms"))[0]["balloon"]
        return max(self.memory - free - int(balloon), 0)

    async def resident(self) -> int:
        return await trio.to_thread.run_sync(self._guest.resident)

    async def _run(self, command: str) -> None:
        try:
            await trio.to_thread.run_sync(self._guest.run, command)
        except GuestError as error:
            raise DemoError(f"the guest failed: {error}") from error


def show(memory: int, reporting: bool) -> None:
    """Boot a guest of memory MiB on a daemon, run the demo, and print the summary."""
    options = [] if reporting else ["--no-reporting"]
    size = memory * MiB
    print(f"Booting a Linux guest with {format_size(size)} ...", file=sys.stderr)
    with Daemon(*options) as daemon, Guest(daemon.socket, memory=Memory(size)) as guest:
        title = f"vhost-balloon: a real Linux guest with {format_size(size)}"
        screen = Screen(History(title, size, SECONDS), sys.stdout)
        with screen:
            trio.run(_play, RealGuest(guest, daemon), daemon, screen, reporting)
        screen.write(["", *picture.summary(screen.history, FREE_MARK)])


async def _play(guest: RealGuest, daemon: Daemon, screen: Screen[History], reporting: bool) -> None:
    async with await QmpClient.connect(daemon.control) as qmp:
        await play(guest, qmp, screen, pace=SECONDS / PLAY_SECONDS, reporting=reporting)

"""Many simulated VMs on one daemon, for the density benchmark."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import trio

from protocol import vhost_user as vu
from protocol.virtio_balloon import Queue
from tests.rig.daemon import Daemon
from tests.rig.memory import MiB
from vhost_balloon.simulator import DriverOptions, FrontEnd, GuestRam, SimulatedGuest

from .stand_in import stood_in_guest

BLOCK: Final = 4 * MiB
BLOCKS: Final = 32
RAM: Final = BLOCK * (BLOCKS + 1)
"""A report's worth of memory above the block that rings lie in; all but a few pages are holes."""
REPORT_SECONDS: Final = 2.0
OPTIONS: Final = DriverOptions(report_delay=None)
SPARE: Final = "spare"
"""The VM that comes and goes."""


class Crowd:
    """A daemon and `count` VMs attached to it. An async context manager.

    Attributes:
        requests: reports that were answered in the last report().
    """

    def __init__(self, count: int) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # some 20 a VM, here and there
        self.names = [f"vm{number:03}" for number in range(count)]
        self.daemon = Daemon(vms=[*self.names, SPARE])
        self.requests = 0
        self._guests: list[SimulatedGuest] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            self._stack.enter_context(self.daemon)
            for name in self.names:
                guest = stood_in_guest(self.daemon.sockets[name], RAM, OPTIONS)
                self._guests.append(await self._stack.enter_async_context(guest))
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._stack.__aexit__(kind, value, tb)

    async def report(self, seconds: float) -> None:
        """Every VM reports 32 blocks with a page in use in each, every REPORT_SECONDS."""
        self.requests = 0
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for number, guest in enumerate(self._guests):
                    delay = REPORT_SECONDS * number / len(self._guests)
                    nursery.start_soon(self._report_regularly, guest, delay)

    async def _report_regularly(self, guest: SimulatedGuest, delay: float) -> None:
        ring = guest.driver.rings[Queue.REPORTING]
        buffers = [(start, BLOCK, True) for start in range(BLOCK, RAM, BLOCK)]
        next_time = trio.current_time() + delay
        while True:
            await trio.sleep_until(next_time)
            use_pages(guest.ram)
            await ring.submit(buffers, indirect=True)
            self.requests += 1
            next_time += REPORT_SECONDS

    async def come_and_go(self) -> tuple[float, float]:
        """Attach one more VM and let it go; return the seconds from connect to DRIVER_OK, and
        from the end of its connection to the first answer for the next front end."""
        socket = self.daemon.sockets[SPARE]
        async with AsyncExitStack() as stack:
            started = time.perf_counter()
            await stack.enter_async_context(stood_in_guest(socket, RAM, OPTIONS))
            attached = time.perf_counter() - started
            started = time.perf_counter()
        with GuestRam.create(RAM) as ram:
            async with await FrontEnd.connect(socket, ram) as following:
                await following.get_u64(vu.Request.GET_FEATURES)
                return attached, time.perf_counter() - started

    async def latencies(self, count: int) -> dict[str, list[float]]:
        """Milliseconds that the control socket takes to answer, by command."""
        arguments = [str(self.daemon.control), self.names[-1], str(count)]
        command = [sys.executable, "-m", "tests.benchmarks.control_latency", *arguments]
        root = Path(__file__).parents[2]
        done = await trio.run_process(command, capture_stdout=True, cwd=root)
        found: dict[str, list[float]] = json.loads(done.stdout)
        return found


def use_pages(ram: GuestRam) -> None:
    """Use the first page of each block; written to the file, it is in nobody's page tables."""
    for start in range(BLOCK, RAM, BLOCK):
        os.pwrite(ram.regions[0].fd, b"\x5a", start)

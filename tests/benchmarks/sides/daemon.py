"""The daemon, with the simulator as its front end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from protocol.virtio_balloon import Queue
from tests.benchmarks.programs.neighbour import Neighbour
from tests.benchmarks.sides.side import FEATURES, Device, guest_ram
from tests.rig.daemon import Daemon
from vhost_balloon.simulator.front_end import FrontEnd
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.options import Numbering, queue_indexes


class DaemonSide(Device):
    """The daemon, with the simulator as its front end."""

    name = "daemon"

    def __init__(self, daemon: Daemon, ram: GuestRam, neighbour: Neighbour) -> None:
        super().__init__(ram, neighbour)
        self.pid = daemon.pid

    async def start(self, front_end: FrontEnd) -> None:
        """Connect the rings."""
        await front_end.handshake()
        indexes = queue_indexes(Numbering.NEGOTIATED, front_end.features, FEATURES)
        rings = {index: self.rings[queue] for queue, index in indexes.items()}
        await front_end.start_device(rings, features=FEATURES)

    def kick(self, queue: Queue) -> None:
        self.rings[queue].kick()

    def kicked(self) -> None:
        """Nothing remains after an eventfd write."""


@asynccontextmanager
async def daemon_side(
    memory: int, *options: str, fd: int | None = None
) -> AsyncIterator[DaemonSide]:
    """Run a daemon with one simulated VM of that many bytes, on a memfd or on fd (owned)."""
    with (
        guest_ram(memory, fd) as (ram, neighbour),
        Daemon("--stats-interval=0", *options) as daemon,
    ):
        async with await FrontEnd.connect(daemon.socket, ram) as front_end:
            side = DaemonSide(daemon, ram, neighbour)
            await side.start(front_end)
            yield side

"""What is compared: each side gives the same memory back, in its own process.

All sides have memory of the same kind (a memfd made by this process), and a neighbour with the
guest's pages in its page tables. Devices are driven by the simulator's rings in that memory. Only
the kick differs: an eventfd for the daemon, a write to the device's notify register over qtest for
QEMU.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from protocol import virtio_balloon as vb
from protocol.virtio_balloon import BalloonFeature, Queue
from protocol.virtio_ring import RingFeature
from tests.benchmarks.programs.neighbour import Neighbour
from tests.benchmarks.works import BUFFER_PAGES, FIRST, PAGE, Request, Work
from tests.rig.memory import MiB
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.ring import DriverRing

RING_SIZE: Final = 64
REPORTING_SIZE: Final = 32
"""QEMU's reporting queue has no more descriptors."""
FEATURES: Final = int(
    BalloonFeature.STATS_VQ
    | BalloonFeature.DEFLATE_ON_OOM
    | BalloonFeature.PAGE_REPORTING
    | RingFeature.INDIRECT_DESC
    | RingFeature.VERSION_1
)
"""Features that both devices offer and a Linux guest accepts."""
ANSWER_SECONDS: Final = 60.0


class NoAnswer(Exception):
    """A device did not use the buffers it was given."""


class Side(ABC):
    """A guest's memory and a process that gives it back.

    Attributes:
        name: of its series of figures.
        pid: the process.
    """

    name: str
    pid: int

    def __init__(self, ram: GuestRam, neighbour: Neighbour) -> None:
        self.ram = ram
        self.neighbour = neighbour

    @abstractmethod
    def give_back(self, work: Work) -> float:
        """Give back all that work names; return the seconds it took. This process polls."""


class Device(Side):
    """A running balloon device and its rings."""

    def __init__(self, ram: GuestRam, neighbour: Neighbour) -> None:
        super().__init__(ram, neighbour)
        sizes = dict.fromkeys(Queue, RING_SIZE) | {Queue.REPORTING: REPORTING_SIZE}
        self.rings = {queue: DriverRing(ram, size) for queue, size in sizes.items()}
        self._buffers = [ram.allocate(BUFFER_PAGES * vb.PFN_SIZE) for _ in range(RING_SIZE)]
        self._words = ram.regions[0].words

    @abstractmethod
    def kick(self, queue: Queue) -> None:
        """Notify the device without waiting."""

    @abstractmethod
    def kicked(self) -> None:
        """Wait until the last kick is complete; its requests are already answered."""

    def give_back(self, work: Work) -> float:
        return sum(self.submit(work.queue, kick) for kick in work.kicks)

    def submit(self, queue: Queue, requests: Sequence[Request]) -> float:
        """Make requests with one kick; return the seconds from the kick to the last answer.

        Polls the used ring for the answer. Raises NoAnswer.
        """
        ring = self.rings[queue]
        for number, request in enumerate(requests):
            self._add(ring, queue, number, request)
        wanted = ring.available_index
        words, used = self._words, ring.used + 2 >> 1
        started = time.perf_counter()
        deadline = started + ANSWER_SECONDS
        self.kick(queue)
        while words[used] != wanted:
            os.sched_yield()  # the device may be waiting for this core
            if time.perf_counter() > deadline:
                raise NoAnswer(f"{self.name}: {queue.value} is not answered")
        elapsed = time.perf_counter() - started
        ring.pop_used()
        self.kicked()
        return elapsed

    def empty_kick(self) -> float:
        """Return the seconds that a kick takes the sender when there is no work."""
        started = time.perf_counter()
        self.kick(Queue.INFLATE)
        self.kicked()
        return time.perf_counter() - started

    def _add(self, ring: DriverRing, queue: Queue, number: int, request: Request) -> None:
        if queue is Queue.REPORTING:
            buffers = [(start, end - start, True) for start, end in request]
            ring.add(buffers, indirect=True)
            return
        pfns = memoryview(bytearray(vb.PFN_SIZE * len(request))).cast("I")
        for position, (start, _) in enumerate(request):
            pfns[position] = start >> vb.PFN_SHIFT
        self.ram.write(self._buffers[number], pfns.tobytes())
        ring.add([(self._buffers[number], pfns.nbytes, False)])


@contextmanager
def guest_ram(memory: int, fd: int | None = None) -> Iterator[tuple[GuestRam, Neighbour]]:
    """Make guest memory of that many bytes, on a memfd or on fd (owned), and a neighbour."""
    with GuestRam.create(memory, fd=fd, driver_area=FIRST) as ram:
        # QEMU has no RAM between 640 KiB and 1 MiB.
        ram.allocate(MiB - PAGE, PAGE)
        with Neighbour(ram.regions[0].fd, memory) as neighbour:
            yield ram, neighbour

"""The two devices under comparison, each in its own process, driven by the same rings.

Both sides have memory of the same kind (a memfd made by this process), a neighbour with the
guest's pages in its page tables, and the simulator's rings in that memory. Only the kick differs:
an eventfd for the daemon, a write to the device's notify register over qtest for QEMU.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

from protocol import virtio_balloon as vb
from protocol.virtio_balloon import BalloonFeature, Queue
from protocol.virtio_ring import RingFeature
from tests.benchmarks.programs.neighbour import Neighbour
from tests.benchmarks.qtest import Qtest
from tests.benchmarks.virtio_pci import VirtioPci
from tests.benchmarks.works import BUFFER_PAGES, FIRST, PAGE, Request
from tests.rig import process, qemu
from tests.rig.daemon import Daemon
from tests.rig.memory import MiB
from tests.rig.provisioning.packages import QEMU
from vhost_balloon.simulator.front_end import FrontEnd
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.options import Numbering, queue_indexes
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
"""Features that both sides offer and a Linux guest accepts."""
ANSWER_SECONDS: Final = 60.0
_QEMU_SLOT: Final = 5


class NoAnswer(Exception):
    """A device did not use the buffers it was given."""


class Side(ABC):
    """A running balloon device, its guest's memory and rings."""

    name: str

    def __init__(self, ram: GuestRam, neighbour: Neighbour) -> None:
        self.ram = ram
        self.neighbour = neighbour
        sizes = dict.fromkeys(Queue, RING_SIZE) | {Queue.REPORTING: REPORTING_SIZE}
        self.rings = {queue: DriverRing(ram, size) for queue, size in sizes.items()}
        self._buffers = [ram.allocate(BUFFER_PAGES * vb.PFN_SIZE) for _ in range(RING_SIZE)]
        self._words = ram.regions[0].words

    @property
    @abstractmethod
    def pid(self) -> int:
        """The device's process id."""

    @abstractmethod
    def kick(self, queue: Queue) -> None:
        """Notify the device without waiting."""

    @abstractmethod
    def kicked(self) -> None:
        """Wait until the last kick is complete; its requests are already answered."""

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


class DaemonSide(Side):
    """The daemon, with the simulator as its front end."""

    name = "daemon"

    def __init__(self, daemon: Daemon, ram: GuestRam, neighbour: Neighbour) -> None:
        super().__init__(ram, neighbour)
        self._daemon = daemon

    @property
    def pid(self) -> int:
        return self._daemon.pid

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


class QemuSide(Side):
    """QEMU's own virtio-balloon-pci, without a guest processor."""

    name = "qemu"

    def __init__(self, qtest: Qtest, pid: int, ram: GuestRam, neighbour: Neighbour) -> None:
        """Set the device up. Raises QtestError."""
        super().__init__(ram, neighbour)
        self._qtest = qtest
        self._pid = pid
        device = VirtioPci(qtest, _QEMU_SLOT)
        device.reset()
        offered = device.features()
        device.accept(FEATURES)
        indexes = queue_indexes(Numbering.OFFERED, offered, FEATURES)
        self._kicks = {
            queue: device.set_queue(index, self.rings[queue]) for queue, index in indexes.items()
        }
        device.start()

    @property
    def pid(self) -> int:
        return self._pid

    def kick(self, queue: Queue) -> None:
        self._qtest.send(self._kicks[queue])

    def kicked(self) -> None:
        """The device works during the register write; only qtest's answer remains."""
        self._qtest.receive()


@contextmanager
def guest_ram(memory: int) -> Iterator[tuple[GuestRam, Neighbour]]:
    """Make guest memory of that many bytes, and a neighbour that maps it."""
    with GuestRam.create(memory, driver_area=FIRST) as ram:
        # QEMU has no RAM between 640 KiB and 1 MiB.
        ram.allocate(MiB - PAGE, PAGE)
        with Neighbour(ram.regions[0].fd, memory) as neighbour:
            yield ram, neighbour


@asynccontextmanager
async def daemon_side(memory: int, *options: str) -> AsyncIterator[DaemonSide]:
    """Run a daemon with one simulated VM of that many bytes."""
    with (
        Daemon("--stats-interval=0", *options) as daemon,
        guest_ram(memory) as (ram, neighbour),
    ):
        async with await FrontEnd.connect(daemon.socket, ram) as front_end:
            side = DaemonSide(daemon, ram, neighbour)
            await side.start(front_end)
            yield side


@contextmanager
def qemu_side(memory: int) -> Iterator[QemuSide]:
    """Run a QEMU with its own balloon and that many bytes of RAM, in our memory file."""
    with ExitStack() as stack:
        ram, neighbour = stack.enter_context(guest_ram(memory))
        folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        log = stack.enter_context((folder / "qemu.log").open("wb"))
        fd = ram.regions[0].fd
        # The qtest accelerator is a module, and QEMU is not at its install location.
        modules = {"QEMU_MODULE_DIR": f"{QEMU.folder}/usr/lib/x86_64-linux-gnu/qemu"}
        command = qemu_command(folder, memory, fd)
        program = process.spawn(command, output=log, pass_fds=[fd], environment=modules)
        stack.callback(process.kill, program)
        qtest = Qtest(folder / "qtest.sock")
        stack.callback(qtest.close)
        yield QemuSide(qtest, program.pid, ram, neighbour)


def qemu_command(folder: Path, memory: int, fd: int) -> list[str]:
    """Command line of a QEMU with its own balloon, RAM in the file behind fd, driven by qtest."""
    backend = f"memory-backend-file,id=mem0,size={memory},mem-path=/proc/self/fd/{fd},share=on"
    return [
        *qemu.program(),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-accel", "qtest", "-m", f"{memory}b", "-object", backend),
        *("-machine", "q35,memory-backend=mem0"),
        *("-qtest", f"unix:{folder}/qtest.sock,server=on,wait=off", "-qtest-log", "/dev/null"),
        "-device",
        f"virtio-balloon-pci,addr={_QEMU_SLOT},disable-legacy=on,"
        "free-page-reporting=on,deflate-on-oom=on",
    ]

"""QEMU's own balloon device, driven over qtest."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from protocol.virtio_balloon import Queue
from tests.benchmarks.programs.neighbour import Neighbour
from tests.benchmarks.sides.qtest import Qtest
from tests.benchmarks.sides.side import FEATURES, Device, guest_ram
from tests.benchmarks.sides.virtio_pci import VirtioPci
from tests.rig import process, qemu
from tests.rig.provisioning.packages import QEMU
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.options import Numbering, queue_indexes

_QEMU_SLOT: Final = 5


class QemuSide(Device):
    """QEMU's own virtio-balloon-pci, without a guest processor."""

    name = "qemu"

    def __init__(self, qtest: Qtest, pid: int, ram: GuestRam, neighbour: Neighbour) -> None:
        """Set the device up. Raises QtestError."""
        super().__init__(ram, neighbour)
        self._qtest = qtest
        self.pid = pid
        device = VirtioPci(qtest, _QEMU_SLOT)
        device.reset()
        offered = device.features()
        device.accept(FEATURES)
        indexes = queue_indexes(Numbering.OFFERED, offered, FEATURES)
        self._kicks = {
            queue: device.set_queue(index, self.rings[queue]) for queue, index in indexes.items()
        }
        device.start()

    def kick(self, queue: Queue) -> None:
        self._qtest.send(self._kicks[queue])

    def kicked(self) -> None:
        """The device works during the register write; only qtest's answer remains."""
        self._qtest.receive()


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

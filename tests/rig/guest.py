"""A real guest: Debian's kernel under QEMU, with or without a balloon."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

from tests.rig import memory as ram
from tests.rig import qemu
from tests.rig.accel import accelerator
from tests.rig.console import Console
from tests.rig.errors import CommandError, GuestError, RigTimeout
from tests.rig.inside.initramfs import kernel
from tests.rig.job import Job
from tests.rig.memory import GiB, Memory
from tests.rig.process import OWN_FORKER, Started, ended, kill, spawn, text_tail
from tests.rig.qmp import QMPClient
from tests.rig.waiting import connected

BOOT_SECONDS: Final = 120.0
_DRIVER: Final = "/lib/modules/virtio_balloon.ko"
_DEAD_STATES: Final = frozenset({"internal-error", "guest-panicked", "io-error", "shutdown"})


class Guest(Started):
    """One QEMU process with a Linux guest in it; a context manager.

    Args:
        balloon: "qemu" for QEMU's own device, None for none, else the path of the socket on
            which a vhost-user back end already listens.
        memory: the guest's RAM.
        flavour: kernel, "cloud" or "generic" (PAGE_POISONING=y).
        kernel_arguments: additional ones, such as "init_on_free=1".
        driver: load virtio_balloon at boot.
        cpus: virtual processors.
        accel: "kvm" or "tcg"; by default whichever works on this machine.
        port: plug the balloon in a port, from which it can be unplugged.
        qemu_arguments: additional ones.
        human: an interactive shell on the console instead of the command loop.
        launcher: words before QEMU's command line, such as MemoryGroup.launcher().
        forker: starts QEMU, see spawn(); SystemdHost has one for its namespaces.

    Attributes:
        folder: holds the sockets and logs (console.log, kernel.log, qemu.log) until close().
        qmp: connection to QEMU, once started.
        console: the guest's shell, once started.
    """

    qmp: QMPClient
    console: Console

    def __init__(
        self,
        balloon: Path | str | None = None,
        *,
        memory: Memory | None = None,
        flavour: Literal["cloud", "generic"] = "cloud",
        kernel_arguments: str = "",
        driver: bool = True,
        cpus: int = 1,
        accel: str | None = None,
        port: bool = False,
        qemu_arguments: tuple[str, ...] = (),
        human: bool = False,
        launcher: tuple[str, ...] = (),
        forker: ThreadPoolExecutor | None = None,
    ) -> None:
        self._forker = forker or OWN_FORKER
        self.memory = memory or Memory()
        self.accel = accel or accelerator(_boots_under_kvm)
        self.human = human
        self.folder = Path(tempfile.mkdtemp(prefix="rig-guest-"))
        self._jobs = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        switches = f"rig.driver={int(driver)} rig.human={int(human)} {kernel_arguments}"
        self._arguments = [
            *launcher,
            *qemu.program(),
            *qemu.base_arguments(self.folder, self.memory, self.accel, cpus),
            *qemu.kernel_arguments(kernel(flavour), switches),
            *qemu.balloon_arguments(balloon, port=port),
            *qemu_arguments,
        ]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if isinstance(value, GuestError) and not isinstance(value, CommandError):
            value.add_note(self.logs())
        super().__exit__(kind, value, tb)

    def start(self, timeout: float = BOOT_SECONDS) -> None:
        """Start QEMU and wait for the guest's shell.

        Raises:
            GuestError: it did not boot within timeout seconds; the text carries all logs.
        """
        deadline = time.monotonic() + timeout
        with (self.folder / "qemu.log").open("wb") as log:
            self._process = spawn(self._arguments, output=log, forker=self._forker)
        try:
            self.console = Console(self.folder / "console.sock", self._check_process, timeout=30)
            self.qmp = self._connected_qmp()
            self.console.set_check(self._check)
            if not self.human:
                self.console.wait_ready(deadline - time.monotonic())
        except GuestError as error:
            raise GuestError(f"the guest did not boot: {error}\n{self.logs()}") from error

    def close(self) -> None:
        """Kill QEMU if it still runs, and delete the logs. May be called twice."""
        self.kill()
        for name in ("console", "qmp"):
            if name in self.__dict__:
                getattr(self, name).close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        if self._process is None:
            raise GuestError("the guest was not started")
        return self._process.pid

    def running(self) -> bool:
        """Whether the QEMU process runs."""
        return self._process is not None and self._process.poll() is None

    def logs(self) -> str:
        """The ends of all logs."""
        names = ("qemu.log", "kernel.log", "console.log")
        return "\n".join(f"--- {name}\n{text_tail(self.folder / name)}" for name in names)

    # The guest's life

    def stop(self) -> None:
        """Pause the virtual machine; its devices stop."""
        self.qmp.execute("stop")

    def cont(self) -> None:
        """Resume it."""
        self.qmp.execute("cont")

    def reset(self, timeout: float = BOOT_SECONDS) -> None:
        """Press the machine's reset button, and wait for the shell."""
        self.qmp.execute("system_reset")
        self.console.wait_ready(timeout)

    def reboot(self, timeout: float = BOOT_SECONDS) -> None:
        """Reboot from inside the guest, and wait for the shell."""
        self.console.send("reboot -f")
        self.console.wait_ready(timeout)

    def poweroff(self, timeout: float = 30) -> None:
        """Power off from inside the guest, and wait for QEMU to end."""
        self.console.send("poweroff -f")
        if self._process is not None and not ended(self._process, timeout):
            raise RigTimeout(f"QEMU did not end within {timeout} s of poweroff\n{self.logs()}")

    def kill(self) -> None:
        """SIGKILL QEMU; may be called twice."""
        if self._process is not None and self._process.poll() is None:
            kill(self._process)

    # Inside the guest

    def run(self, command: str, timeout: float = 60) -> str:
        """Run a shell command in the guest; see Console.run."""
        return self.console.run(command, timeout)

    def spawn(self, command: str) -> Job:
        """Start a shell command in the guest, in the background."""
        return Job(self.run, command, f"/run/job{next(self._jobs)}")

    def load_driver(self) -> None:
        """Load virtio_balloon."""
        self.run(f"insmod {_DRIVER}")

    def unload_driver(self, timeout: float = 120) -> None:
        """Unload virtio_balloon, which first deflates the balloon."""
        self.run("rmmod virtio_balloon", timeout)

    def meminfo(self) -> dict[str, int]:
        """/proc/meminfo in bytes (counts of huge pages as they are)."""
        lines = (line.split() for line in self.run("cat /proc/meminfo").splitlines())
        return {
            words[0].rstrip(":"): int(words[1]) * (1024 if words[-1] == "kB" else 1)
            for words in lines
        }

    def vmstat(self) -> dict[str, int]:
        """/proc/vmstat: events since boot, and pages by state."""
        lines = (line.split() for line in self.run("cat /proc/vmstat").splitlines())
        return {name: int(value) for name, value in lines}

    def dmesg(self) -> str:
        """The kernel's log."""
        return self.run("dmesg")

    # The guest's memory

    def resident(self) -> int:
        """Bytes of host memory that the guest's RAM uses."""
        return ram.resident(self.pid)

    # Internals

    def _connected_qmp(self) -> QMPClient:
        """Connect; QEMU opens this socket right after the console's."""
        return connected(
            lambda: QMPClient(self.folder / "qmp.sock"),
            30,
            lambda: RigTimeout("QEMU offers no QMP socket"),
            self._check_process,
        )

    def _check_process(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise GuestError(f"QEMU ended with status {self._process.returncode}")

    def _check(self) -> None:
        """Raise GuestError if QEMU has ended or stopped the guest for good."""
        self._check_process()
        status = self.qmp.execute("query-status")["status"]
        if status in _DEAD_STATES:
            raise GuestError(f"the guest is in state {status}")


def _boots_under_kvm() -> bool:
    try:
        with Guest(accel="kvm", memory=Memory(GiB // 4, "none"), driver=False) as guest:
            return bool(guest.run("echo yes", 10))
    except GuestError:
        return False

"""Guest workloads, in busybox sh."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.rig.errors import GuestError, RigTimeout
from tests.rig.guest import Guest
from tests.rig.job import Job
from tests.rig.memory import MiB
from tests.rig.qmp import QMPClient

_INTEGRITY: Final = Path(__file__).with_name("guest_integrity.sh")


def fill(guest: Guest, size: int, name: str = "fill", *, timeout: float = 120) -> None:
    """Write size bytes (whole MiB) to a file on the guest's tmpfs."""
    guest.run(f"dd if=/dev/zero of=/tmp/{name} bs=1M count={size // MiB} 2>/dev/null", timeout)


def free(guest: Guest, name: str = "fill", *, timeout: float = 60) -> None:
    """Delete that file."""
    guest.run(f"rm /tmp/{name}", timeout)


def press(guest: Guest, size: int) -> Job:
    """Fill the guest with size bytes in the background.

    There is no swap, so a size above the free memory succeeds only if the balloon deflates under
    memory pressure; otherwise the writer fails (tmpfs full) or is killed.
    """
    guest.run("mkdir -p /run/press; mountpoint -q /run/press ||"
              " mount -t tmpfs -o size=100% press /run/press")  # fmt: skip
    return guest.spawn(f"dd if=/dev/zero of=/run/press/data bs=1M count={size // MiB}")


def release_pressure(guest: Guest) -> None:
    """Free the memory that press() took."""
    guest.run("umount /run/press")


def set_target(qmp: QMPClient, size: int, timeout: float = 60) -> float:
    """Set the guest's memory to size bytes, through QEMU or the daemon.

    BALLOON_CHANGE cannot measure time: QEMU sends it at most once a second.

    Returns:
        The seconds until `query-balloon` reported it, to about 20 ms.

    Raises:
        RigTimeout: the guest did not reach it within timeout seconds.
    """
    started = time.monotonic()
    qmp.execute("balloon", {"value": size})
    while (actual := int(qmp.execute("query-balloon")["actual"])) != size:
        if time.monotonic() - started > timeout:
            raise RigTimeout(f"the guest stays at {actual} instead of {size} bytes")
        time.sleep(0.02)
    return time.monotonic() - started


@dataclass(frozen=True)
class IntegrityReport:
    """Current counts of an integrity run.

    Attributes:
        written, verified, deleted: files.
        bad_bytes: bytes that differed from those written.
        finished: the run is over, and every remaining file was verified.
    """

    written: int
    verified: int
    deleted: int
    bad_bytes: int
    finished: bool


class Integrity:
    """Makes the guest write files for some seconds, delete some and verify the rest.

    The console stays free: the guest keeps its counts in a file.

    Args:
        seconds: how long it writes.
        file_size: bytes of each file (whole MiB).
        most: maximum number of files.
    """

    def __init__(self, guest: Guest, seconds: int, file_size: int = 4 * MiB, most: int = 60):
        self._guest = guest
        guest.run("rm -rf /tmp/integrity /run/integrity*")  # from the previous run
        settings = f"SECONDS_TO_RUN={seconds} FILE_MIB={file_size // MiB} MOST={most}"
        self._job = guest.spawn(f"{settings}\n{_INTEGRITY.read_text()}")

    def report(self) -> IntegrityReport:
        """The counts so far."""
        text = self._guest.run("cat /run/integrity 2>/dev/null || true")
        return _parsed(text)

    def finish(self, timeout: float) -> IntegrityReport:
        """Make it verify the remaining files and end early; see wait()."""
        self._guest.run("touch /run/integrity-stop")
        return self.wait(timeout)

    def wait(self, timeout: float) -> IntegrityReport:
        """Wait for the end.

        Raises:
            RigTimeout: it did not end within timeout seconds.
            GuestError: the workload failed.
        """
        output = self._job.wait(timeout)
        report = self.report()
        if not report.finished:
            raise GuestError(f"the integrity workload broke down:\n{output}")
        return report


def _parsed(text: str) -> IntegrityReport:
    counts = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", text)}
    return IntegrityReport(
        written=counts.get("written", 0),
        verified=counts.get("verified", 0),
        deleted=counts.get("deleted", 0),
        bad_bytes=counts.get("bad", 0),
        finished=counts.get("finished", 0) == 1,
    )

"""Helpers of real-guest tests: a daemon with a guest attached, and how to observe both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.rig.daemon import Daemon
from tests.rig.guest import Guest
from tests.rig.memory import GiB, Memory, MiB
from tests.rig.process import fds
from tests.rig.qmp import QMPClient
from tests.rig.waiting import wait_until

HUGE_PAGE: Final = 2 * MiB


@dataclass(frozen=True)
class Attached:
    """A daemon, a guest attached to it, and a client of the daemon's control socket."""

    daemon: Daemon
    guest: Guest
    qmp: QMPClient

    def vm(self) -> dict[str, Any]:
        """What the daemon knows of its VM."""
        found: dict[str, Any] = self.qmp.execute("query-vms")[0]
        return found

    def guest_stats(self) -> dict[str, Any]:
        path = f"/machine/peripheral/{self.vm()['id']}"
        answer: dict[str, Any] = self.qmp.execute(
            "qom-get", {"path": path, "property": "guest-stats"}
        )
        return answer

    def wait_driver(self) -> None:
        wait_until(lambda: bool(self.vm()["driver-ready"]), 30)


@contextmanager
def attached(
    *options: str,
    memory: Memory | None = None,
    control: Path | None = None,
    **guest_options: Any,
) -> Iterator[Attached]:
    """A guest of 1 GiB (or memory) on a daemon with these options, booted, its driver ready.

    control: path of the daemon's control socket, see Daemon.
    """
    with (
        Daemon(*options, control=control) as daemon,
        Guest(daemon.socket, memory=memory or Memory(GiB), **guest_options) as guest,
        daemon.qmp() as qmp,
    ):
        both = Attached(daemon, guest, qmp)
        if guest_options.get("driver", True):
            both.wait_driver()
        yield both


def memory_files(guest: Guest) -> list[Path]:
    """A path to each of the guest's memfds, each file once, in no particular order."""
    files = {}
    for number, link in fds(guest.pid).items():
        if link.startswith("/memfd:memory-backend-memfd"):
            path = Path(f"/proc/{guest.pid}/fd/{number}")
            files[path.stat().st_ino] = path
    return list(files.values())


def resident_between(file: Path, start: int, end: int) -> int:
    """Bytes that the host spends on a part of a memory file, offsets in bytes."""
    fd = os.open(file, os.O_RDONLY)
    try:
        return _data_between(fd, start, end)
    finally:
        os.close(fd)


def _data_between(fd: int, start: int, end: int) -> int:
    found = 0
    while start < end:
        try:
            data = os.lseek(fd, start, os.SEEK_DATA)
        except OSError:  # ENXIO: no data up to the end of the file
            break
        start = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        found += max(start - data, 0)
    return found


def corruption(guest: Guest) -> list[str]:
    """Lines of the guest kernel's log that tell of damaged memory."""
    signs = ("corruption", "Bad page", "BUG:", "Oops", "poison overwritten")
    return [line for line in guest.dmesg().splitlines() if any(sign in line for sign in signs)]

"""A /proc folder with one process that pins memory or does not, and the rule for real pins."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

import pytest

from tests.rig.fixtures import required
from tests.support.helpers import MIB
from vhost_balloon.memory.pin_guard import PinGuard
from vhost_balloon.memory.pins import PinState

PID = 4711
MEMORY = 64 * MIB


class Proc:
    """A /proc folder with one process."""

    def __init__(self, root: Path, pid: int = PID) -> None:
        self.root = root
        self.folder = root / str(pid)
        (self.folder / "fd").mkdir(parents=True)
        self.says()

    def says(self, *, pinned: int = 0, locked: int = 0) -> None:
        """Write its status. Sizes in bytes."""
        (self.folder / "status").write_text(
            f"Name:\tqemu\nVmPeak:\t 9 kB\nVmLck:\t{locked // 1024:8} kB\n"
            f"VmPin:\t{pinned // 1024:8} kB\nThreads:\t3\n"
        )

    def holds(self, *links: str) -> None:
        """Give it open descriptors."""
        for number, link in enumerate(links):
            (self.folder / "fd" / str(number)).symlink_to(link)

    def look(self, memory: int = MEMORY) -> PinState:
        """Its state. memory: bytes of guest memory."""
        return PinGuard(PID, self.root).check(memory, 0.0)


def cannot_pin(reason: str) -> NoReturn:
    """Real pins are required in CI; elsewhere a kernel may forbid io_uring."""
    if required():
        pytest.fail(f"real pins are required here: {reason}")
    pytest.skip(f"REAL PINS NOT TESTED: {reason}")

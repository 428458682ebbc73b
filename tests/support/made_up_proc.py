"""Processes that pin memory or do not: one in a made-up /proc folder, and real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def process_that(what: str, size: int) -> Iterator[int]:
    """The PID of a process that pins or locks memory, or has a device that does: tests.support.
    hostile.pinning."""
    command = [sys.executable, "-m", "tests.support.hostile.pinning", what, str(size)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        said = process.stdout.readline().strip()
        if said != "done":
            process.stdin.close()
            cannot_pin(said)
        yield process.pid
        process.stdin.close()


def seen_by_nobody(pid: int, examiner: Path | None = None) -> tuple[str, str]:
    """The state of process pid, and why, as a process without any rights over it sees it.

    Needs root. examiner: the socket of one that it asks.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            guard = PinGuard(pid, examiner=examiner)
            state = guard.check(MEMORY, 0.0)
            os.write(write_end, f"{state.value}\n{guard.why}".encode())
        finally:
            os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    with os.fdopen(read_end) as answer:
        told, _, why = answer.read().partition("\n")
    return told, why

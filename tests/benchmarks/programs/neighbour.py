"""Another process that maps the guest's memory and touches pages or punches holes."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterable, Sequence

from tests.benchmarks.programs.compiled import program
from tests.rig.process import Closing
from vhost_balloon.memory.ranges import Range


class Neighbour(Closing):
    """host_memory.c over a memory file. A context manager.

    It sleeps between commands, like a halted vCPU: unmapping its pages interrupts no core.
    """

    def __init__(self, fd: int, size: int) -> None:
        """Map size bytes of the file behind fd; the caller keeps fd."""
        self._process = subprocess.Popen(
            [program("host_memory"), str(fd), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[fd],
        )

    def touch(self, ranges: Iterable[Range]) -> float:
        """Write to every page of ranges of the file; return the seconds it took."""
        self._send("touch", ranges)
        return self._answer()

    def ask_for_huge_pages(self, ranges: Iterable[Range]) -> None:
        """MADV_HUGEPAGE for ranges of the file."""
        self._send("huge", ranges)
        self._answer()

    def punch(self, ranges: Iterable[Range]) -> float:
        """Punch each range out of the file, in order; return the seconds it took.

        Polls for the answer, as Device.submit does.
        """
        self._send("punch", ranges)
        self._poll()
        return self._answer()

    def remove(self, kicks: Iterable[Sequence[Range]]) -> float | None:
        """Punch the same with one process_madvise for all ranges of a kick.

        Returns None if the kernel refuses; it then punched nothing.
        """
        self._send("remove", [item for kick in kicks for item in (*kick, (0, 0))])
        self._poll()
        seconds = self._answer()
        return seconds if seconds >= 0 else None

    def close(self) -> None:
        """End it by closing its input."""
        self._process.communicate(timeout=30)

    @property
    def pid(self) -> int:
        return self._process.pid

    def _send(self, verb: str, ranges: Iterable[Range]) -> None:
        lines = [f"{start} {end - start}\n" for start, end in ranges]
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb} {len(lines)}\n" + "".join(lines))
        self._process.stdin.flush()

    def _poll(self) -> None:
        assert self._process.stdout is not None
        while not select.select([self._process.stdout], [], [], 0)[0]:
            os.sched_yield()

    def _answer(self) -> float:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline()) / 1e9

"""Another process that maps the guest's memory and touches pages or punches holes."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable

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
        return self._command("touch", ranges)

    def punch(self, ranges: Iterable[Range]) -> float:
        """Punch each range out of the file, in order; return the seconds it took."""
        return self._command("punch", ranges)

    def close(self) -> None:
        """End it by closing its input."""
        self._process.communicate(timeout=30)

    @property
    def pid(self) -> int:
        return self._process.pid

    def _command(self, verb: str, ranges: Iterable[Range]) -> float:
        lines = [f"{start} {end - start}\n" for start, end in ranges]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{verb} {len(lines)}\n" + "".join(lines))
        self._process.stdin.flush()
        return int(self._process.stdout.readline()) / 1e9

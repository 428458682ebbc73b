"""A memory cgroup of its own, of either version, for processes that share a limit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from tests.rig.errors import RigUnavailable
from tests.rig.process import Closing
from tests.rig.waiting import wait_until

_OLD: Final = Path("/sys/fs/cgroup/memory")
_NEW: Final = Path("/sys/fs/cgroup")
_EMPTY_SECONDS: Final = 30.0


class MemoryGroup(Closing):
    """A memory cgroup without swap; close() waits until its processes have ended.

    Memory is charged to the group of the process that touches it first, and stays there.

    Args:
        name: of its folder; this process's id is added.
        limit: bytes.

    Raises:
        RigUnavailable: none can be made here: it takes root and the memory controller.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._is_old = (_OLD / "memory.limit_in_bytes").exists()
        self.folder = (_OLD if self._is_old else _NEW) / f"{name}-{os.getpid()}"
        self.limit = limit
        try:
            self.folder.mkdir()
        except OSError as error:
            raise RigUnavailable(f"no memory cgroup: {error}") from error
        try:
            self._set_limits()
        except OSError as error:
            self.folder.rmdir()
            raise RigUnavailable(f"no memory cgroup: {error}") from error

    def _set_limits(self) -> None:
        if self._is_old:
            self._write("memory.limit_in_bytes", self.limit)
            self._write("memory.swappiness", 0)
        else:
            self._write("memory.max", self.limit)
            if (self.folder / "memory.swap.max").exists():
                self._write("memory.swap.max", 0)

    def _write(self, file: str, value: int) -> None:
        # Opening must not create: a group without the controller lacks the file.
        with (self.folder / file).open("r+") as opened:
            opened.write(str(value))

    def close(self) -> None:
        """Remove it once its processes have ended. May be called twice."""
        if self.folder.exists():
            wait_until(lambda: not self.processes(), _EMPTY_SECONDS)
            self.folder.rmdir()

    def processes(self) -> list[int]:
        """Process ids."""
        return [int(pid) for pid in (self.folder / "cgroup.procs").read_text().split()]

    def add(self, pid: int) -> None:
        """Move a process in; what it used before stays with its old group."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def launcher(self) -> tuple[str, ...]:
        """Words before a command line that start it in the group, from its first byte."""
        join_and_run = 'echo $$ >"$0" && exec "$@"'
        return ("sh", "-c", join_and_run, str(self.folder / "cgroup.procs"))

    def peak(self) -> int:
        """The most bytes that were charged to it at a time."""
        file = "memory.max_usage_in_bytes" if self._is_old else "memory.peak"
        return int((self.folder / file).read_text())

    def kills(self) -> int:
        """Processes killed by the group's OOM killer."""
        file = "memory.oom_control" if self._is_old else "memory.events"
        words = (self.folder / file).read_text().split()
        return int(words[words.index("oom_kill") + 1])

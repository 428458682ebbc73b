"""The host of the demo: a folder with the files of a memory cgroup, whose figures are the guests'.

The policy reads it as it would read a real one. Nothing enforces the limit, so that the demo can
show what exceeds it.

Source: Linux Documentation/admin-guide/cgroup-v2.rst, "Memory Interface Files".
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_NUMBER: Final = "018d"
"""A number is written in place, so that it is never read half."""


class PlayedHost:
    """limit: its memory in bytes."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder: Final = folder
        self.limit: Final = limit
        folder.mkdir()
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.stat").write_text("file 0\nshmem 0\n")
        self._current = os.open(folder / "memory.current", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        self.spend(0)

    def spend(self, size: int) -> None:
        """The guests have so many bytes."""
        os.pwrite(self._current, f"{size:{_NUMBER}}\n".encode(), 0)

    def close(self) -> None:
        os.close(self._current)

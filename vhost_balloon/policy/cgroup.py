"""A memory cgroup that stands for the host.

Its files are read by path at each tick, so that a cgroup that is made anew is found again.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from vhost_balloon.policy.host_text import amount, stat_value
from vhost_balloon.policy.interfaces import HostUnreadable

MAX_FILE: Final = 1 << 16
"""Bytes that are read of a file; memory.stat has some 2 KiB."""

NO_LIMIT: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class _Names:
    """How a version of cgroups calls its files, and the rows of memory.stat for file pages with
    shared memory, and for shared memory alone; both with what is below the cgroup."""

    limit: str
    current: str
    file: str
    shmem: str


_V2: Final = _Names("memory.max", "memory.current", "file", "shmem")
_V1: Final = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache", "total_shmem")


@dataclass(frozen=True, slots=True)
class CgroupMemory:
    """limit: NO_LIMIT or more for none. available: what it can still allocate, its file pages
    included."""

    limit: int
    available: int


class Cgroup:
    """folder: its path; either version."""

    def __init__(self, folder: str) -> None:
        self.folder: Final = folder

    def read(self) -> CgroupMemory:
        """Raises HostUnreadable."""
        names = _V1 if self._exists(_V1.limit) else _V2
        limit = self._limit(names.limit)
        current = self._amount(names.current)
        stat = self._read("memory.stat")
        file = max(stat_value(stat, names.file) - stat_value(stat, names.shmem), 0)
        return CgroupMemory(limit, max(limit - current + file, 0))

    def pressure(self) -> bytes | None:
        """Its memory.pressure; None if it has none, as in version 1."""
        try:
            return self._read("memory.pressure")
        except HostUnreadable:
            return None

    def _limit(self, name: str) -> int:
        data = self._read(name)
        return NO_LIMIT if data == b"max\n" else amount(data, name)

    def _amount(self, name: str) -> int:
        return amount(self._read(name), name)

    def _exists(self, name: str) -> bool:
        return os.path.exists(os.path.join(self.folder, name))

    def _read(self, name: str) -> bytes:
        path = os.path.join(self.folder, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                return os.pread(fd, MAX_FILE, 0)
            finally:
                os.close(fd)
        except OSError as error:
            raise HostUnreadable(f"the cgroup's {path}: {error.strerror}") from None

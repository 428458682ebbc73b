"""Reads the host's memory: meminfo, memory pressure, ZFS's cache, a cgroup.

The service manager may hand over descriptors that were opened outside of the sandbox, which hides
these files. Each is read again at offset 0, which gives fresh figures.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Self

from vhost_balloon.errors import OperatorError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.policy.cgroup import Cgroup
from vhost_balloon.policy.host_text import arc_given_back, meminfo, stalled
from vhost_balloon.policy.inputs import HostFigures
from vhost_balloon.policy.interfaces import HostUnreadable
from vhost_balloon.policy.settings import PolicySettings

MEMINFO: Final = "meminfo"
PRESSURE: Final = "memory-pressure"
ARCSTATS: Final = "arcstats"
HANDED_NAMES: Final = (MEMINFO, PRESSURE, ARCSTATS)
"""Names of descriptors that the service manager may hand over (OpenFile=)."""

PATHS: Final[Mapping[str, str]] = {
    MEMINFO: "meminfo",
    PRESSURE: "pressure/memory",
    ARCSTATS: "spl/kstat/zfs/arcstats",
}
"""Below /proc."""

MAX_FILE: Final = 1 << 16
"""Bytes that are read of a file; arcstats, the longest, has some 10 KiB."""

_REMEDY: Final = (
    "give the hub's unit OpenFile=/proc/meminfo:meminfo:read-only and "
    "OpenFile=/proc/pressure/memory:memory-pressure:read-only,graceful (systemd 253), or a drop-in "
    "with ProcSubset=all"
)


class HostInputs:
    """The host's memory. The caller closes it."""

    def __init__(self, files: Mapping[str, OwnedFd], cgroup: Cgroup | None) -> None:
        """files: open for reading, by the names in PATHS; owned. Of them, only meminfo must be
        there. cgroup: what stands for the host, None for none."""
        self._files: Final = files
        self._cgroup: Final = cgroup
        self._before: tuple[bool, int, float] | None = None
        """The last count of stalled microseconds: whether it was the cgroup's, the count, when."""

    @classmethod
    def open(
        cls,
        settings: PolicySettings,
        handed: Mapping[str, OwnedFd] | None = None,
        proc: Path = Path("/proc"),
    ) -> Self:
        """Open what the settings need. handed: descriptors from the service manager, which stay
        open and are the caller's.

        Raises OperatorError if the host's memory cannot be read.
        """
        wanted = (MEMINFO, PRESSURE, *([ARCSTATS] if settings.zfs_arc else []))
        files: dict[str, OwnedFd] = {}
        host = cls(files, None if settings.cgroup is None else Cgroup(settings.cgroup))
        try:
            for name in wanted:
                fd = _open(name, handed or {}, proc)
                if fd is not None:
                    files[name] = fd
            host._memory()
        except HostUnreadable as error:
            host.close()
            text = f"the policy cannot read the host's memory: {error}"
            in_cgroup = settings.cgroup is not None and MEMINFO in files
            raise OperatorError(text if in_cgroup else f"{text}; {_REMEDY}") from None
        return host

    def close(self) -> None:
        for fd in self._files.values():
            fd.close()

    def read(self, now: float) -> HostFigures:
        """The host now. Raises HostUnreadable."""
        total, available = self._memory()
        return HostFigures(available, total, self._some(now))

    def _memory(self) -> tuple[int, int]:
        """Total and available bytes. Raises HostUnreadable."""
        total, available = meminfo(self._read(MEMINFO))
        if (arcstats := self._optional(ARCSTATS)) is not None:
            available = min(available + arc_given_back(arcstats), total)
        if self._cgroup is not None:
            limited = self._cgroup.read()
            total = min(total, max(limited.limit, 1))
            available = min(available, limited.available)
        return total, available

    def _some(self, now: float) -> float:
        """Share of the time since the last read in which tasks waited for memory; 0 if it is
        unknown."""
        data = None if self._cgroup is None else self._cgroup.pressure()
        is_cgroup = data is not None
        if data is None:
            data = self._optional(PRESSURE)
        count = None if data is None else stalled(data)
        before, self._before = self._before, None if count is None else (is_cgroup, count, now)
        if count is None or before is None or before[0] is not is_cgroup or now <= before[2]:
            return 0.0
        share = (count - before[1]) / 1e6 / (now - before[2])
        return min(max(share, 0.0), 1.0)  # a counter that fell began anew

    def _read(self, name: str) -> bytes:
        """Raises HostUnreadable."""
        try:
            return os.pread(self._files[name].fileno(), MAX_FILE, 0)
        except OSError as error:
            raise HostUnreadable(f"{name}: {error.strerror}") from None

    def _optional(self, name: str) -> bytes | None:
        """None if the kernel does not have it; psi=0 on its command line gives EOPNOTSUPP."""
        if name not in self._files:
            return None
        try:
            return self._read(name)
        except HostUnreadable:
            return None


def _open(name: str, handed: Mapping[str, OwnedFd], proc: Path) -> OwnedFd | None:
    """A descriptor to own; None if an optional file cannot be opened. Raises HostUnreadable."""
    path = proc / PATHS[name]
    try:
        if name in handed:
            return OwnedFd(os.dup(handed[name].fileno()))
        return OwnedFd(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        if name != MEMINFO:
            return None
        raise HostUnreadable(f"{path}: {error.strerror}") from None

"""Whether the front end has guest memory pinned, so that discarding it would break DMA.

A device that is passed through to the guest (VFIO, iommufd, vhost-vdpa) goes on using the pages
that it was given; a page that is discarded and touched again is another one. QEMU inhibits its own
balloon then. Outside of QEMU, /proc tells: VmPin of the front end's process counts what it has
pinned; VmLck at or above the guest's memory says that it is locked; and its descriptors name the
devices, where we may read them.

Pins by other processes cannot be seen, and a device that is plugged in between two looks races.
"""

from __future__ import annotations

import enum
import os
from itertools import islice
from pathlib import Path
from typing import Final

CACHE_SECONDS: Final = 1.0

MAX_DESCRIPTORS: Final = 4096
"""Descriptors that are looked at, in some 8 ms; a process may open millions of them. QEMU has some
hundreds; of one that has more than this it cannot be told whether it pins memory."""

_DEVICES: Final = (
    "/dev/vfio/",
    "/dev/iommu",
    "/dev/vhost-vdpa",
    "anon_inode:[vfio",
    "anon_inode:[iommufd",
)


class PinState(enum.Enum):
    """What a look at the front end's process came to; the values are the metric's label."""

    FREE = "free"
    PINNED = "pinned"
    UNKNOWN = "pins-unknown"


class PinGuard:
    """Looks at process pid (None if it cannot be named) below a /proc folder."""

    def __init__(self, pid: int | None, proc: Path = Path("/proc")) -> None:
        self._folder = None if pid is None else proc / str(pid)
        self._state = PinState.UNKNOWN
        self._looked_at = float("-inf")

    def check(self, memory_size: int, now: float) -> PinState:
        """The state, at most CACHE_SECONDS old; now is the monotonic clock in seconds."""
        if now - self._looked_at >= CACHE_SECONDS:
            self._state, self._looked_at = self._look(memory_size), now
        return self._state

    def _look(self, memory_size: int) -> PinState:
        if self._folder is None:
            return PinState.UNKNOWN
        try:
            status = (self._folder / "status").read_text(errors="replace")
            pinned, locked = _kilobytes(status, "VmPin"), _kilobytes(status, "VmLck")
        except (OSError, ValueError):
            return PinState.UNKNOWN
        if pinned or (memory_size and locked >= memory_size):
            return PinState.PINNED
        return self._look_at_descriptors()

    def _look_at_descriptors(self) -> PinState:
        """Whether one is of a device that pins; without the right to look, none is."""
        assert self._folder is not None
        try:
            folder = os.open(self._folder / "fd", os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            return PinState.FREE
        try:
            # Below the open folder: the way to it would be looked up again for each descriptor.
            with os.scandir(folder) as entries:
                numbers = [entry.name for entry in islice(entries, MAX_DESCRIPTORS + 1)]
            if any(_link(folder, number).startswith(_DEVICES) for number in numbers):
                return PinState.PINNED
        except OSError:
            return PinState.FREE
        finally:
            os.close(folder)
        return PinState.UNKNOWN if len(numbers) > MAX_DESCRIPTORS else PinState.FREE


def _link(folder: int, number: str) -> str:
    try:
        return os.readlink(number, dir_fd=folder)
    except OSError:  # closed meanwhile
        return ""


def _kilobytes(status: str, name: str) -> int:
    """A field of /proc/PID/status in bytes. Raises ValueError if it is not there."""
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no {name}")

"""Detects whether the front end has guest memory pinned, so that discarding it would break DMA.

A passed-through device (VFIO, iommufd, vhost-vdpa) continues to use the pages that it was given,
but a page that is discarded and touched again is a different page. QEMU inhibits its own balloon in
this case. Outside of QEMU, /proc tells: VmPin of the front end's process counts pinned memory, a
VmLck of at least the guest's memory means that it is locked, and its descriptors name the devices.
Only all three together show that nothing is pinned: VFIO accounts its pins as locked memory, which
may be less than the guest's. Without an answer the state is unknown: the process may not be
examined, has ended, or is hidden in /proc (hidepid=).

Limits: pins by other processes are invisible, and a device that is plugged in between two looks is
seen too late.
"""

from __future__ import annotations

import enum
import errno
import os
import re
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Final

from vhost_balloon.fds import OwnedFd

CACHE_SECONDS: Final = 1.0

MAX_DESCRIPTORS: Final = 4096
"""Most descriptors to examine, in some 8 ms. QEMU has some hundreds, but a process may open
millions; with more than this, it is unknown whether it pins memory."""

_DEVICES: Final = (
    "/dev/vfio/",
    "/dev/iommu",
    "/dev/vhost-vdpa",
    "anon_inode:[vfio",
    "anon_inode:[iommufd",
)
_MAX_STATUS: Final = 1 << 16
"""Most bytes to read of /proc/PID/status. Linux writes some 1500."""

_UNNAMED: Final = (
    "the kernel does not tell its process, because it is in another PID namespace or its socket "
    "was handed over by --fd"
)
_HINDRANCES: Final = {
    errno.EACCES: "this daemon may not examine it, because it runs as another user or is protected",
    errno.ENOENT: "it has ended, or /proc does not show it because it runs as another user",
    errno.ESRCH: "it has ended",
}
_HINDRANCES[errno.EPERM] = _HINDRANCES[errno.EACCES]


class PinState(enum.Enum):
    """Whether the front end's process has memory pinned. The values are metric labels."""

    FREE = "free"
    PINNED = "pinned"
    UNKNOWN = "pins-unknown"


class PinGuard:
    """Looks at process pid (None if it is not known) in the /proc folder.

    why: the reason in words, if the state is UNKNOWN.
    """

    def __init__(
        self,
        pid: int | None,
        proc: Path = Path("/proc"),
        is_peer: Callable[[int], bool] = lambda _: True,
    ) -> None:
        """is_peer: whether the front end still runs and has this PID. Raises OSError if unknown."""
        self._pid = pid
        self._proc = proc
        self._is_peer = is_peer
        self._folder: OwnedFd | None = None
        self._state = PinState.UNKNOWN
        self._looked_at = float("-inf")
        self._memory_size = 0
        self.why = ""

    def check(self, memory_size: int, now: float) -> PinState:
        """The state, at most CACHE_SECONDS old.

        memory_size: bytes of guest memory. now: the monotonic clock in seconds.
        """
        if now - self._looked_at >= CACHE_SECONDS or memory_size != self._memory_size:
            self._state, self.why = self._look(memory_size)
            self._looked_at, self._memory_size = now, memory_size
        return self._state

    def close(self) -> None:
        """Close the process's folder; no look may follow."""
        if self._folder is not None:
            self._folder.close()

    def _look(self, memory_size: int) -> tuple[PinState, str]:
        if self._pid is None or self._pid <= 0:
            return PinState.UNKNOWN, _UNNAMED
        try:
            folder = self._process(self._pid)
            # A process that ends loses its memory before its descriptors. So if the second look
            # still finds memory, the list of descriptors was complete.
            pinned = (
                _has_pinned(folder, memory_size)
                or _has_device(folder)
                or _has_pinned(folder, memory_size)
            )
        except OSError as error:
            why = _HINDRANCES.get(error.errno or 0, error.strerror)
        except ValueError as error:
            why = str(error)
        else:
            return PinState.PINNED if pinned else PinState.FREE, ""
        return PinState.UNKNOWN, f"process {self._pid}: {why}"

    def _process(self, pid: int) -> int:
        """A descriptor of its /proc folder, which never becomes that of a later process with the
        same PID. Raises OSError."""
        if self._folder is None:
            folder = OwnedFd(os.open(self._proc / str(pid), os.O_PATH | os.O_DIRECTORY))
            # Only after the folder is open: while the front end runs, no other process has its PID.
            if not self._is_peer(pid):
                raise ProcessLookupError(errno.ESRCH, "it is not the front end")
            self._folder = folder
        return self._folder.fileno()


def _has_pinned(folder: int, memory_size: int) -> bool:
    """Whether its status shows pinned or locked memory. Raises OSError or ValueError if unknown."""
    with open(os.open("status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder), "rb") as file:
        status = file.read(_MAX_STATUS).decode(errors="replace")
    pinned, locked = _bytes(status, "VmPin"), _bytes(status, "VmLck")
    return pinned > 0 or 0 < memory_size <= locked


def _has_device(folder: int) -> bool:
    """Whether it has a device open that pins. Raises OSError or ValueError if unknown."""
    with closing(OwnedFd(os.open("fd", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder))) as opened:
        # Relative to the open folder, so that its path is not resolved for each descriptor.
        descriptors = opened.fileno()
        with os.scandir(descriptors) as entries:
            numbers = [entry.name for entry in islice(entries, MAX_DESCRIPTORS + 1)]
        if any(_link(descriptors, number).startswith(_DEVICES) for number in numbers):
            return True
    if len(numbers) > MAX_DESCRIPTORS:
        raise ValueError(f"it has more than {MAX_DESCRIPTORS} descriptors")
    return False


def _link(folder: int, number: str) -> str:
    try:
        return os.readlink(number, dir_fd=folder)
    except FileNotFoundError:  # closed meanwhile
        return ""


def _bytes(status: str, name: str) -> int:
    """A field of /proc/PID/status in bytes. Raises ValueError unless it is there exactly once: a
    process without memory (a kernel thread, or one that has ended) has none."""
    found = re.findall(rf"^{name}:[ \t]*([0-9]+) kB$", status, re.MULTILINE)
    if len(found) != 1:
        raise ValueError(f"its status has no {name}: it has ended, or is a kernel thread")
    return int(found[0]) * 1024

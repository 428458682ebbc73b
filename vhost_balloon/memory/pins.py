"""Whether the front end has guest memory pinned, so that discarding it would break DMA.

A device that is passed through to the guest (VFIO, iommufd, vhost-vdpa) goes on using the pages
that it was given; a page that is discarded and touched again is another one. QEMU inhibits its own
balloon then. Outside of QEMU, /proc tells: VmPin of the front end's process counts what it has
pinned; VmLck at or above the guest's memory says that it is locked; and its descriptors name the
devices. Only all three together say that nothing is pinned: VFIO counts what it pins as locked,
which may be less than the guest's memory. So whatever is no answer leaves it unknown: a process
that may not be looked at, that has ended, or that /proc does not show (hidepid=).

Pins by other processes cannot be seen, and a device that is plugged in between two looks races.
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
"""Descriptors that are looked at, in some 8 ms; a process may open millions of them. QEMU has some
hundreds; of one that has more than this it cannot be told whether it pins memory."""

_DEVICES: Final = (
    "/dev/vfio/",
    "/dev/iommu",
    "/dev/vhost-vdpa",
    "anon_inode:[vfio",
    "anon_inode:[iommufd",
)
_MAX_STATUS: Final = 1 << 16
"""Bytes of /proc/PID/status that are read; Linux writes some 1500."""

_UNNAMED: Final = (
    "the kernel does not say which process it is, because it is in another PID namespace or its "
    "socket was handed over by --fd"
)
_HINDRANCES: Final = {
    errno.EACCES: "this daemon may not look at it, because it runs as another user or is protected",
    errno.ENOENT: "it has ended, or /proc does not show it because it runs as another user",
    errno.ESRCH: "it has ended",
}
_HINDRANCES[errno.EPERM] = _HINDRANCES[errno.EACCES]


class PinState(enum.Enum):
    """What a look at the front end's process came to; the values are the metric's label."""

    FREE = "free"
    PINNED = "pinned"
    UNKNOWN = "pins-unknown"


class PinGuard:
    """Looks at process pid (None if it cannot be named) below a /proc folder.

    why: what hindered the last look, in words, if it came to UNKNOWN.
    """

    def __init__(
        self,
        pid: int | None,
        proc: Path = Path("/proc"),
        is_peer: Callable[[int], bool] = lambda _: True,
    ) -> None:
        """is_peer: whether the front end is there still, and has this number; OSError: unknown."""
        self._pid = pid
        self._proc = proc
        self._is_peer = is_peer
        self._folder: OwnedFd | None = None
        self._state = PinState.UNKNOWN
        self._looked_at = float("-inf")
        self._memory_size = 0
        self.why = ""

    def check(self, memory_size: int, now: float) -> PinState:
        """The state, at most CACHE_SECONDS old; now is the monotonic clock in seconds.

        memory_size: the guest's, in bytes.
        """
        if now - self._looked_at >= CACHE_SECONDS or memory_size != self._memory_size:
            self._state, self.why = self._look(memory_size)
            self._looked_at, self._memory_size = now, memory_size
        return self._state

    def close(self) -> None:
        """Look no more."""
        if self._folder is not None:
            self._folder.close()

    def _look(self, memory_size: int) -> tuple[PinState, str]:
        if self._pid is None or self._pid <= 0:
            return PinState.UNKNOWN, _UNNAMED
        try:
            folder = self._process(self._pid)
            # Its descriptors go later than its memory when a process ends, so memory that is there
            # at last says that they were, too.
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
        """Its folder, which is never another process's, even if that has its number later.

        Raises OSError.
        """
        if self._folder is None:
            folder = OwnedFd(os.open(self._proc / str(pid), os.O_PATH | os.O_DIRECTORY))
            # Once it is open: until the front end has ended, nobody else can have the number.
            if not self._is_peer(pid):
                raise ProcessLookupError(errno.ESRCH, "it is not the front end")
            self._folder = folder
        return self._folder.fileno()


def _has_pinned(folder: int, memory_size: int) -> bool:
    """Raises OSError or ValueError if its status does not say so."""
    with open(os.open("status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder), "rb") as file:
        status = file.read(_MAX_STATUS).decode(errors="replace")
    pinned, locked = _bytes(status, "VmPin"), _bytes(status, "VmLck")
    return pinned > 0 or 0 < memory_size <= locked


def _has_device(folder: int) -> bool:
    """Whether one of its descriptors is of a device that pins. Raises OSError or ValueError."""
    with closing(OwnedFd(os.open("fd", os.O_RDONLY | os.O_DIRECTORY, dir_fd=folder))) as opened:
        # Below the open folder: the way to it would be looked up again for each descriptor.
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
    """A field of /proc/PID/status in bytes. Raises ValueError if it is not there exactly once; a
    process without memory of its own (a kernel thread, one that has ended) has none."""
    found = re.findall(rf"^{name}:[ \t]*([0-9]+) kB$", status, re.MULTILINE)
    if len(found) != 1:
        raise ValueError(f"its status has no {name}: it has ended, or is a kernel thread")
    return int(found[0]) * 1024

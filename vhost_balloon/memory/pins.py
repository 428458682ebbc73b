"""Detects whether the front end has guest memory pinned, so that discarding it would break DMA.

A passed-through device (VFIO, iommufd, vhost-vdpa) continues to use the pages that it was given,
but a page that is discarded and touched again is a different page. QEMU inhibits its own balloon in
this case. Outside of QEMU, /proc tells: VmPin of the front end's process counts pinned memory, a
VmLck of at least the guest's memory means that it is locked, and its descriptors name the devices.
Only all three together show that nothing is pinned: VFIO accounts its pins as locked memory, which
may be less than the guest's. Without an answer the state is unknown: the process may not be
examined, has ended, or is hidden in /proc (hidepid=). pin_guard.py decides who looks.

Limits: pins by other processes are invisible, and a device that is plugged in between two looks is
seen too late.
"""

from __future__ import annotations

import enum
import errno
import os
import re
from contextlib import closing
from itertools import islice
from typing import Final

from vhost_balloon.fds import OwnedFd

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

_RIGHTS: Final = 1 << 19 | 1 << 2
"""CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH (include/uapi/linux/capability.h)."""

_HINDRANCES: Final = {
    errno.EACCES: "it may not be examined, because it runs as another user or is protected",
    errno.ENOENT: "it has ended, or /proc does not show it because it runs as another user",
    errno.ESRCH: "it has ended",
}
_HINDRANCES[errno.EPERM] = _HINDRANCES[errno.EACCES]


class PinState(enum.Enum):
    """Whether the front end's process has memory pinned. The values are metric labels."""

    FREE = "free"
    PINNED = "pinned"
    UNKNOWN = "pins-unknown"


def look(folder: int, memory_size: int) -> PinState:
    """Whether a process has memory pinned: FREE or PINNED.

    folder: its open folder in /proc. memory_size: bytes of its guest's memory. Raises OSError or
    ValueError if that cannot be known; hindrance() describes them.
    """
    # A process that ends loses its memory before its descriptors. So if the second look still finds
    # memory, the list of descriptors was complete.
    pinned = (
        _has_pinned(folder, memory_size) or _has_device(folder) or _has_pinned(folder, memory_size)
    )
    return PinState.PINNED if pinned else PinState.FREE


def hindrance(error: OSError | ValueError) -> str:
    """Why look() failed, in words."""
    if isinstance(error, OSError):
        return _HINDRANCES.get(error.errno or 0) or error.strerror or str(error)
    return str(error)


def has_rights() -> bool:
    """Whether this process may look at those of all users."""
    with open("/proc/self/status", "rb") as status:
        found = re.search(rb"^CapEff:\t([0-9a-f]+)$", status.read(_MAX_STATUS), re.MULTILINE)
    held = int(found[1], 16) if found else 0
    return held & _RIGHTS == _RIGHTS


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

"""Small helpers: memory, descriptors and sockets."""

from __future__ import annotations

import fcntl
import os
import select
import socket
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Final

from protocol.vhost_user_payloads import Region
from vhost_balloon.fds import OwnedFd
from vhost_balloon.memory.discard import PunchResult, punch
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.memory.ranges import total
from vhost_balloon.memory.region import MappedRegion, Part
from vhost_balloon.memory.vector import RangeVector

PAGE: Final = 4096
MIB: Final = 1 << 20
GIB: Final = 1 << 30
HUGE: Final = 2 * MIB

USER: Final = 0x7F00_0000_0000
"""Where a front end maps its guests' memory."""

QEMU_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def memfd(size: int, *, seals: int = QEMU_SEALS, flags: int = 0) -> OwnedFd:
    """Guest memory as QEMU's memory-backend-memfd makes it."""
    fd = OwnedFd(os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags))
    os.ftruncate(fd.fileno(), size)
    fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, seals)
    return fd


def resident(file: OwnedFd | Path) -> int:
    """Return the bytes of host memory that a file takes."""
    return os.stat(file if isinstance(file, Path) else file.fileno()).st_blocks * 512


def mapped(
    fd: OwnedFd, guest: int = 0, size: int = MIB, offset: int = 0, user: int | None = None
) -> MappedRegion:
    """A region of a file, at a user address that follows from the guest's unless it is given."""
    where = USER + guest if user is None else user
    return MappedRegion(Region(guest, size, where, offset), fd)


def mapped_regions(memory: GuestMemory) -> list[MappedRegion]:
    """Its regions, none of which is untouched."""
    found = [region for region in memory.regions if isinstance(region, MappedRegion)]
    assert len(found) == len(memory.regions)
    return found


Piece = tuple[MappedRegion, int, int]
"""A range of a region's file: offset and length in bytes."""


def parts(*pieces: Piece) -> list[Part]:
    """Turn pieces into parts for punch(); consecutive pieces of one region make one part."""
    found: list[Part] = []
    for region, items in groupby(pieces, itemgetter(0)):
        to_guest = -region.to_file
        ranges = [(at + to_guest, at + size + to_guest) for _, at, size in items]
        found.append(Part(region, RangeVector.of(ranges), total(ranges)))
    return found


def punch_all(parts: Iterable[Part]) -> PunchResult:
    """Punch parts, each as one piece, and sum the results; the error is the last one."""
    freed, failed, errors, seconds = zip(*map(punch, parts), strict=True)
    return PunchResult(sum(freed), sum(failed), errors[-1], sum(seconds))


def pieces(parts: Iterable[Part]) -> list[Piece]:
    """Turn parts into pieces."""
    return [
        (part.region, start + part.region.to_file, end - start)
        for part in parts
        for start, end in part.ranges
    ]


def readable(fd: int, seconds: float = 0) -> bool:
    """Wait until a descriptor is readable; return whether it is."""
    poll = select.poll()  # select() refuses descriptors above 1023
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def receive(sock: socket.socket, size: int) -> bytes:
    """Receive exactly size bytes of a stream, fewer only at its end."""
    data = b""
    while len(data) < size and (part := sock.recv(size - len(data))):
        data += part
    return data


def no_fds(count: int) -> list[OwnedFd]:
    """Stand-ins for descriptors, for code that only hands them on."""
    return [OwnedFd(-1) for _ in range(count)]

"""Opens one descriptor of each kind that a front end might send."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import tempfile
from typing import Final

from tests.support.helpers import QEMU_SEALS

MEMORY_SIZE: Final = 64 << 10

KINDS: Final = (
    "memory",
    "eventfd",
    "memfd",
    "socket",
    "unsealed",
    "read-only",
    "semaphore",
    "full",
    "file",
    "empty",
    "closed-socket",
    "datagram",
    "pipe",
    "closed-pipe",
    "directory",
    "path",
    "device",
    "epoll",
)


def _memfd(size: int, seals: int) -> int:
    fd = os.memfd_create("fuzz-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def _one_of(pair: tuple[int, int], *, keep: int) -> int:
    os.close(pair[1 - keep])
    return pair[keep]


def _socket(kind: socket.SocketKind) -> int:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    theirs.close()
    return ours.detach()


def _read_only() -> int:
    fd = _memfd(MEMORY_SIZE, QEMU_SEALS)
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


def open_descriptor(kind: str, memory: int, channel: int) -> int:
    """Open a descriptor; memory is the guest's memory file, channel a connected socket.

    The caller closes it.
    """
    match kind:
        case "memory":
            return os.dup(memory)
        case "eventfd":
            return os.eventfd(0)
        case "semaphore":  # stays readable: each read takes one
            return os.eventfd(1 << 31, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        case "full":
            fd = os.eventfd(0)
            os.eventfd_write(fd, (1 << 64) - 2)
            return fd
        case "memfd":
            return _memfd(MEMORY_SIZE, QEMU_SEALS)
        case "unsealed":
            return _memfd(MEMORY_SIZE, 0)
        case "empty":
            return _memfd(0, QEMU_SEALS)
        case "read-only":
            return _read_only()
        case "file":
            with tempfile.TemporaryFile() as file:
                os.truncate(file.fileno(), MEMORY_SIZE)
                return os.dup(file.fileno())
        case "socket":
            return os.dup(channel)
        case "closed-socket":
            return _socket(socket.SOCK_STREAM)
        case "datagram":
            return _socket(socket.SOCK_DGRAM)
        case "pipe":
            return _one_of(os.pipe(), keep=0)
        case "closed-pipe":
            return _one_of(os.pipe(), keep=1)
        case "directory":
            return os.open("/", os.O_RDONLY | os.O_CLOEXEC)
        case "path":
            return os.open("/", os.O_PATH | os.O_CLOEXEC)
        case "epoll":
            with select.epoll() as poll:
                return os.dup(poll.fileno())
        case _:
            return os.open("/dev/zero", os.O_RDWR | os.O_CLOEXEC)

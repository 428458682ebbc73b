"""File descriptors that this process owns: closed once, never by number."""

from __future__ import annotations

import array
import errno
import os
import resource
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trio

from vhost_balloon.errors import FrontEndError
from vhost_balloon.log.lines import logger

SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""How the system says that it, or this process, has no descriptors or memory left for now."""

_EVENT: Final = (1).to_bytes(8, "little")
_EVENTFD_LINK: Final = "anon_inode:[eventfd]"


def receive_fds(ancillary: list[tuple[int, int, bytes]]) -> list[OwnedFd]:
    """The descriptors that came with a message (SCM_RIGHTS)."""
    fds: list[OwnedFd] = []
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers = array.array("i")
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
            fds += [OwnedFd(number) for number in numbers]
    return fds


class OwnedFd:
    """Owns one descriptor. Ownership moves by handing this object on, never by the number."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """The number, for one system call. Raises ValueError once closed."""
        if self._fd < 0:
            raise ValueError("descriptor is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def detach(self) -> int:
        """Give the number, and the duty to close it, to the caller."""
        fd, self._fd = self.fileno(), -1
        return fd

    def close(self) -> None:
        """Close it; more calls do nothing.

        It is closed even if close(2) fails: with the error of a file system, which may be the front
        end's own and says nothing to us.
        """
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                os.close(fd)
            except OSError as error:
                if error.errno == errno.EBADF:  # it was not ours
                    raise

    def __del__(self) -> None:
        self.close()


@contextmanager
def spare_descriptors(count: int) -> Iterator[None]:
    """Make sure that so many more are to be had, for what comes inside or next. Raises OSError."""
    spare: list[OwnedFd] = []
    try:
        while len(spare) < count:
            spare.append(OwnedFd(os.open("/", os.O_PATH | os.O_CLOEXEC)))
        yield
    finally:
        for fd in spare:
            fd.close()


def is_eventfd(fd: OwnedFd) -> bool:
    return os.readlink(f"/proc/self/fd/{fd.fileno()}") == _EVENTFD_LINK


class EventFd:
    """A call or err eventfd from the front end, or a kick (see Kick).

    The file description is shared with the peer, who may have left it in blocking mode or set it
    at any time; so no call here relies on O_NONBLOCK, and none changes it. One gap is left: a peer
    that makes its eventfd blocking and fills it between our poll and our write blocks us (Linux
    6.18 still answers EOPNOTSUPP to a write with RWF_NOWAIT).
    Raises FrontEndError if the descriptor is no eventfd (epoll would refuse a file, and reading a
    socket could take what is not ours).
    """

    def __init__(self, fd: OwnedFd) -> None:
        if not is_eventfd(fd):
            raise FrontEndError("descriptor is not an eventfd")
        self.fd = fd
        self._writable = select.poll()
        self._writable.register(fd.fileno(), select.POLLOUT)

    def close(self) -> None:
        self.fd.close()

    def signal(self) -> None:
        """Add one to the count. A full counter is left: its reader has not looked yet anyway."""
        fd = self.fd.fileno()
        polled = self._writable.poll(0)
        # A counter at its very limit, which only the kernel can reach, polls as an error alone.
        if polled and polled[0][1] & select.POLLOUT:
            try:
                os.write(fd, _EVENT)
            except BlockingIOError:
                pass


class Kick(EventFd):
    """A kick eventfd, which can be waited for.

    It has an epoll object of its own. In trio's it would leave an entry behind when it is closed,
    for as long as the front end keeps its file open; the entry of a closed epoll object goes.
    Edges are looked for, and the count is left alone: each kick makes one, whatever the count, and
    one that is a semaphore would take as many reads as its count says.
    Raises OSError if it cannot be waited for: there may be no descriptors left.
    """

    def __init__(self, fd: OwnedFd) -> None:
        super().__init__(fd)
        self._edges = select.epoll()
        self._edges.register(fd.fileno(), select.EPOLLIN | select.EPOLLET)

    def close(self) -> None:
        self._edges.close()
        super().close()

    async def wait(self) -> None:
        """Wait for a kick since it was last taken; at first, for any."""
        await trio.lowlevel.wait_readable(self._edges.fileno())

    def take(self) -> None:
        """Take the kicks so far, if there were any."""
        self._edges.poll(0, 1)


def raise_descriptor_limit() -> None:
    """Have as many descriptors as the hard limit allows; the usual soft limit is 1024.

    A limit that was inherited may be above what the kernel lets anybody set (fs.nr_open).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (hard, _kernel_limit()):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        except (OSError, ValueError) as error:  # EPERM is a ValueError
            reason = error
        else:
            return
    logger.warning("the limit of descriptors stays as it is: %s", reason)


def _kernel_limit() -> int:
    try:
        return int(Path("/proc/sys/fs/nr_open").read_text())
    except (OSError, ValueError):
        return 1 << 20  # its default

"""File descriptors with an owner, which closes them exactly once, and eventfds."""

from __future__ import annotations

import array
import errno
import os
import resource
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from vhost_balloon.errors import FrontEndError
from vhost_balloon.log.lines import logger

SHORTAGE: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Error numbers for a lack of descriptors or memory, in this process or the system."""

_EVENT: Final = (1).to_bytes(8, "little")
_EVENTFD_LINK: Final = "anon_inode:[eventfd]"


def receive_fds(ancillary: list[tuple[int, int, bytes]]) -> list[OwnedFd]:
    """The descriptors received with a message (SCM_RIGHTS)."""
    fds: list[OwnedFd] = []
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers = array.array("i")
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
            fds += [OwnedFd(number) for number in numbers]
    return fds


class OwnedFd:
    """Owns one descriptor. Ownership is passed on with this object, never with the number."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """The number, for one system call. Raises ValueError if closed."""
        if self._fd < 0:
            raise ValueError("descriptor is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def detach(self) -> int:
        """Return the number; the caller has to close it."""
        fd, self._fd = self.fileno(), -1
        return fd

    def close(self) -> None:
        """Close it; further calls do nothing.

        It is closed even if close(2) fails with an error of a file system, which may be the front
        end's and is ignored.
        """
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                os.close(fd)
            except OSError as error:
                if error.errno == errno.EBADF:  # a bug: it was not ours
                    raise

    def __del__(self) -> None:
        self.close()


def shut_down(fd: OwnedFd) -> None:
    """End a socket's connection, of which other processes may have copies, in both directions."""
    sock = socket.socket(fileno=fd.fileno())
    try:
        with suppress(OSError):  # the peer has gone
            sock.shutdown(socket.SHUT_RDWR)
    finally:
        sock.detach()


@contextmanager
def spare_descriptors(count: int) -> Iterator[None]:
    """Reserve count descriptors until exit, to prove that there are enough. Raises OSError."""
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

    The peer shares the open file description and may set or clear O_NONBLOCK at any time; so no
    call here relies on the flag, and none changes it. One gap remains: a peer that makes its
    eventfd blocking and fills it between our poll and our write blocks us (Linux 6.18 still answers
    EOPNOTSUPP to a write with RWF_NOWAIT). Raises FrontEndError if the descriptor is not an eventfd
    (epoll would refuse a file, and reading a socket could take data that is not ours).
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
        """Add one to the count. A full counter stays as it is: its reader has not looked yet."""
        fd = self.fd.fileno()
        polled = self._writable.poll(0)
        # A counter at its limit, which only the kernel can reach, polls as an error only.
        if polled and polled[0][1] & select.POLLOUT:
            try:  # noqa: SIM105 - on the path of every request
                os.write(fd, _EVENT)
            except BlockingIOError:
                pass


class Kick(EventFd):
    """A kick eventfd that tasks can wait for.

    It has its own epoll object. In trio's it would leave an entry behind when closed, for as long
    as the front end keeps the file open; closing an epoll object removes its entries. It waits for
    edges and leaves the count alone: each kick causes an edge, whatever the count, and a semaphore
    would need as many reads as its count says. Raises OSError if there are too few descriptors.
    """

    def __init__(self, fd: OwnedFd) -> None:
        super().__init__(fd)
        self._edges = select.epoll()
        self._edges.register(fd.fileno(), select.EPOLLIN | select.EPOLLET)

    def close(self) -> None:
        self._edges.close()
        super().close()

    async def wait(self) -> None:
        """Wait for a kick since the last take(); at first, for any."""
        await trio.lowlevel.wait_readable(self._edges.fileno())

    def take(self) -> None:
        """Consume the kicks so far, if any."""
        self._edges.poll(0, 1)


def raise_descriptor_limit() -> None:
    """Raise the soft limit of descriptors, usually 1024, to the hard limit.

    An inherited limit may exceed what the kernel lets a process set (fs.nr_open).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (hard, _kernel_limit()):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        except (OSError, ValueError) as error:  # ValueError stands for EPERM
            reason = error
        else:
            return
    logger.warning("cannot raise the limit of descriptors: %s", reason)


def _kernel_limit() -> int:
    try:
        return int(Path("/proc/sys/fs/nr_open").read_text())
    except (OSError, ValueError):
        return 1 << 20  # its default

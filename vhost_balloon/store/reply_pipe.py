"""Sends replies so that it is known, whenever this process dies, whether one was sent.

A process that is killed right behind a send has no time to note it, and the front end, woken by
the send, may well run first. So a reply goes through a pipe: splice(2) takes it out of the pipe
and puts it into the socket in one system call, which a signal does not interrupt. The journal says
whose reply was on its way, and the pipe, which outlives the process in the descriptor store,
whether it still is:

    DONE                        it was not sent
    SENDING, the pipe is full   it was not sent
    SENDING, the pipe is empty  it was sent

There is one pipe for all connections: nothing else runs between its filling and its emptying. The
process after one that died looks before it sends anything (vhost_balloon.restart.records), and writes
down what it saw before it empties the pipe; for it may die as well.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import termios

from vhost_balloon.fds import OwnedFd
from vhost_balloon.store.journal import Journal, Phase

_SIZE = 1 << 16


def make_pipe() -> OwnedFd:
    """An empty pipe, both ends in one descriptor."""
    reading, writing = map(OwnedFd, os.pipe2(os.O_CLOEXEC))
    with contextlib.closing(reading), contextlib.closing(writing):
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        return OwnedFd(os.open(f"/proc/self/fd/{reading.fileno()}", flags))


class ReplyPipe:
    """The pipe; fd is taken over, and may hold what another process did not send."""

    def __init__(self, fd: OwnedFd) -> None:
        self.fd = fd

    @property
    def unsent(self) -> bool:
        """Whether a reply is in it, whose process died before it was sent."""
        size = array.array("i", [0])
        fcntl.ioctl(self.fd.fileno(), termios.FIONREAD, size)
        return size[0] > 0

    def settle(self, journal: Journal) -> None:
        """Write down whether a reply that was on its way when a process died was sent."""
        entry = journal.latest()
        if entry is None or entry.phase is not Phase.SENDING:
            return
        if self.unsent:
            journal.unsent()
        else:
            journal.sent()

    def send(self, sock: int, data: bytes, journal: Journal) -> int:
        """Send what the socket (non-blocking) takes of a reply at once; the bytes that it took.

        journal is at DONE, and then at SENT if all was sent. Raises ConnectionError.
        """
        os.write(self.fd.fileno(), data)
        journal.sending()
        try:
            sent = os.splice(self.fd.fileno(), sock, len(data))
        except BlockingIOError:
            sent = 0
            journal.unsent()
        except OSError:
            self.empty()
            raise
        if sent == len(data):
            journal.sent()
        else:
            self.empty()
        return sent

    def close(self) -> None:
        self.fd.close()

    def empty(self) -> None:
        """Drop what is in it."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd.fileno(), _SIZE)

"""Sends replies in a way that tells the next process whether one was sent.

A process that is killed right after a send cannot note it, and the front end, woken by the send,
may well run first. So a reply goes through a pipe: splice(2) moves it from the pipe to the socket
in one system call, which a signal does not interrupt. The journal says which reply was being sent,
and the pipe, which outlives the process in the descriptor store, whether it was:

    DONE                        it was not sent
    SENDING, the pipe is full   it was not sent
    SENDING, the pipe is empty  it was sent

There is one pipe for all connections: nothing else runs between filling and emptying it. The next
process looks before it sends anything (restart/taking_over.py), and notes what it saw before it
empties the pipe, because it may die as well.
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
    """An empty pipe with both ends in one descriptor."""
    reading, writing = map(OwnedFd, os.pipe2(os.O_CLOEXEC))
    with contextlib.closing(reading), contextlib.closing(writing):
        flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC
        return OwnedFd(os.open(f"/proc/self/fd/{reading.fileno()}", flags))


class ReplyPipe:
    """The pipe; fd is taken over, and may hold a reply that the previous process did not send."""

    def __init__(self, fd: OwnedFd) -> None:
        self.fd = fd

    @property
    def unsent(self) -> bool:
        """Whether the pipe holds a reply that was never sent."""
        size = array.array("i", [0])
        fcntl.ioctl(self.fd.fileno(), termios.FIONREAD, size)
        return size[0] > 0

    def settle(self, journal: Journal) -> None:
        """Note in the journal whether the reply was sent that a process was sending as it died."""
        entry = journal.latest()
        if entry is None or entry.phase is not Phase.SENDING:
            return
        if self.unsent:
            journal.unsent()
        else:
            journal.sent()

    def send(self, sock: int, data: bytes, journal: Journal) -> int:
        """Send as much of a reply as the non-blocking socket accepts; return how many bytes.

        journal is at DONE, and then at SENT if all was sent. Raises ConnectionError.
        """
        pipe = self.fd.fileno()
        os.write(pipe, data)
        journal.sending()
        try:
            sent = os.splice(pipe, sock, len(data))
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
        """Drop the pipe's content."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fd.fileno(), _SIZE)

"""Eventfds as QEMU creates them, non-blocking and closed on exec, with trio."""

from __future__ import annotations

import os
from types import TracebackType

import trio


class EventFd:
    """One eventfd, owned by this object."""

    def __init__(self, initial: int = 0) -> None:
        self._fd = os.eventfd(initial, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """Return the descriptor, -1 once closed."""
        return self._fd

    def signal(self) -> None:
        """Add one to the counter."""
        os.eventfd_write(self._fd, 1)

    def take(self) -> int:
        """Return the counter and reset it to 0, without waiting."""
        try:
            return os.eventfd_read(self._fd)
        except BlockingIOError:
            return 0

    async def wait(self) -> int:
        """Wait until the counter is not 0, then take it.

        Raises:
            trio.ClosedResourceError: it was closed.
        """
        while True:
            if self._fd == -1:
                raise trio.ClosedResourceError
            count = self.take()
            if count:
                return count
            await trio.lowlevel.wait_readable(self._fd)

    def close(self) -> None:
        """Wake waiting tasks, then close. A second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd == -1:
            return
        if trio.lowlevel.in_trio_run():
            trio.lowlevel.notify_closing(fd)
        os.close(fd)

    def __enter__(self) -> EventFd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class QueuePorts:
    """The eventfds of one queue, with QEMU's names."""

    def __init__(self) -> None:
        self.kick: EventFd | None = None
        self.call = EventFd()
        self.masked_call = EventFd()
        self.err = EventFd()

    def renew_kick(self) -> EventFd:
        """Replace the kick eventfd, as QEMU does at each start: by one that is readable."""
        if self.kick is not None:
            self.kick.close()
        self.kick = EventFd(1)
        return self.kick

    def close(self) -> None:
        for event in (self.kick, self.call, self.masked_call, self.err):
            if event is not None:
                event.close()

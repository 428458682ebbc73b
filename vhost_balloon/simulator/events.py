"""Eventfds as QEMU makes them: non-blocking, closed on exec, waited for in trio."""

from __future__ import annotations

import os
from types import TracebackType

import trio


class EventFd:
    """One eventfd that this object owns and closes once."""

    def __init__(self, initial: int = 0) -> None:
        self._fd = os.eventfd(initial, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """The descriptor, or -1 once closed."""
        return self._fd

    def signal(self) -> None:
        """Add one to the counter."""
        os.eventfd_write(self._fd, 1)

    def take(self) -> int:
        """Return the counter and set it to 0, without waiting."""
        try:
            return os.eventfd_read(self._fd)
        except BlockingIOError:
            return 0

    async def wait(self) -> int:
        """Wait until the counter is not 0, then take it.

        Raises:
            trio.ClosedResourceError: closed meanwhile.
        """
        while True:
            if self._fd == -1:
                raise trio.ClosedResourceError
            count = self.take()
            if count:
                return count
            await trio.lowlevel.wait_readable(self._fd)

    def close(self) -> None:
        """Wake whoever waits, then close; a second call does nothing."""
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

"""Opens and reads the host's memory in a thread.

In a container its files may be a program's (lxcfs), and the cgroup's path may lie anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from vhost_balloon.errors import OperatorError
from vhost_balloon.policy.inputs import HostFigures
from vhost_balloon.policy.interfaces import Host, HostUnreadable
from vhost_balloon.policy.settings import PolicySettings
from vhost_balloon.threads import Thread

HANGS: Final = "the host's memory cannot be read: its file system hangs"


class HostReader:
    """The host's memory, which is open when needed. The caller closes it."""

    def __init__(self, open_host: Callable[[PolicySettings], Host], thread: Thread) -> None:
        """open_host: raises OperatorError if the host's memory cannot be read."""
        self._open_host: Final = open_host
        self._thread: Final = thread
        self._busy: Final = trio.Lock()
        self._host: Host | None = None
        self._wanted: object = None
        """The settings that it was opened with."""

    async def open(self, settings: PolicySettings) -> None:
        """Open it, so that an operator's mistake shows. Raises OperatorError."""
        async with self._busy:
            await self._opened(settings)

    async def read(self, settings: PolicySettings, now: float) -> HostFigures:
        """The host now. Raises OperatorError or HostUnreadable."""
        async with self._busy:
            host = await self._opened(settings)
            try:
                return await self._thread.run(partial(host.read, now))
            except trio.TooSlowError:
                # The read may still end, and count for the next one; and closing may hang as well.
                self._host = None
                trio.lowlevel.start_thread_soon(host.close, lambda _: None)
                raise HostUnreadable(HANGS) from None

    async def _opened(self, settings: PolicySettings) -> Host:
        """The host as the settings want it. Raises OperatorError."""
        if self._host is not None and self._wanted == _wanted(settings):
            return self._host
        self.close()
        try:
            host = await self._thread.run(partial(self._open_host, settings))
        except trio.TooSlowError:
            raise OperatorError(HANGS) from None
        self._host, self._wanted = host, _wanted(settings)
        return host

    def close(self) -> None:
        """Do not call it while read() runs."""
        if self._host is not None:
            self._host.close()
            self._host = None


def _wanted(settings: PolicySettings) -> object:
    return settings.cgroup, settings.zfs_arc

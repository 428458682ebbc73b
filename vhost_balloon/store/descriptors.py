"""Stores descriptors for the next process, under short names.

systemd keeps descriptors that are sent to it with FDSTORE=1 and hands them to the next process of
the service. When this program re-executes in place, with or without a service manager, it hands
the same descriptors to itself under the same names; so there is one reader for both.

Only descriptors that this program created are sent to the service manager: the lock, the record,
the reply pipe, the shelf, listening sockets and the accepted connection. systemd calls fstat() on
each, which a front end's descriptor (a file whose server is silent) would hang. Those are on the
shelf (store/shelf.py).

A name keeps its meaning for as long as the service exists: anything new gets a new number. So if a
message reaches the service manager late, or not at all, the next process can tell the old
descriptor from the new one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Final

import trio

from vhost_balloon.fds import OwnedFd
from vhost_balloon.log.lines import logger
from vhost_balloon.service.handed_over import PREFIX
from vhost_balloon.service.systemd import Notifier, fdstore, fdstore_remove

LOCK: Final = ".lock"
PIPE: Final = ".pipe"
RECORD: Final = ".record-"
CONNECTION: Final = ".connection-"
LISTENER: Final = ".listener-"
SHELF: Final = ".shelf-"
"""Names, and prefixes of names (those ending in "-")."""

KEEP_LIMIT: Final = 10.0
DEAF_LIMIT: Final = 0.01
"""Longest time to wait for the service manager to read a message, in seconds; and once it has
failed to. systemd reads nothing for some 0.1 s while it starts a unit, and may have many to start.
"""


class Store:
    """The descriptors stored for the next process, and those that the previous one left.

    limit: how many descriptors the service manager stores, 0 without a store. inherited: those
    that were left, with their names.
    """

    def __init__(
        self,
        notifier: Notifier | None = None,
        limit: int = 0,
        inherited: Iterable[tuple[str, OwnedFd]] = (),
    ) -> None:
        self._notifier = notifier
        self._limit = limit if notifier else 0
        self._left = dict(inherited)
        self._inherited: Final = tuple(self._left)
        self._numbers: Counter[str] = Counter()
        """The highest number used so far, by prefix."""
        self._kept: dict[str, OwnedFd] = {}
        self._is_deaf = False
        """The service manager did not read the last message in time."""
        self._missed: dict[str, None] = {}
        self._has_missed = trio.Event()
        """Names whose last change the service manager does not know; set while there are any."""

    @property
    def active(self) -> bool:
        """Whether a service manager stores descriptors, so that they survive a sudden death."""
        return self._limit > 0

    @property
    def kept(self) -> dict[str, OwnedFd]:
        """The descriptors stored now, by name; their users own them."""
        return {name: fd for name, fd in self._kept.items() if not fd.closed}

    @property
    def is_behind(self) -> bool:
        """Whether the service manager has not been told of every change yet."""
        return self._has_missed.is_set()

    def left(self, prefix: str = PREFIX) -> list[str]:
        """Names of descriptors that were left and not taken yet, with a prefix."""
        return [name for name in self._left if name.startswith(prefix)]

    def new_number(self, prefix: str) -> int:
        """A number that no name with this prefix had, in this process or the previous one."""
        known = (self._numbers[prefix], *numbered(prefix, self._inherited))
        self._numbers[prefix] = max(known) + 1
        return self._numbers[prefix]

    def look(self, name: str) -> OwnedFd:
        """A descriptor that was left, without taking it."""
        return self._left[name]

    def take(self, name: str) -> OwnedFd | None:
        """Take a descriptor that was left, if there is one. It remains stored."""
        fd = self._left.pop(name, None)
        if fd is not None:
            self._kept[name] = fd
        return fd

    async def keep(self, name: str, fd: OwnedFd, *, is_ours: bool = True) -> None:
        """Store a descriptor for the next process; its user still owns it.

        One that is not ours is handed over by an upgrade in place only, never to the service
        manager. If the service manager does not read, a warning says that the descriptor would be
        lost with this process, and run() sends it later.
        """
        self._kept[name] = fd
        if self.active and is_ours:
            await self._tell(name)

    async def remove(self, name: str) -> None:
        """Drop a descriptor that was stored or left."""
        self._kept.pop(name, None)
        left = self._left.pop(name, None)
        if left is not None:
            left.close()
        if self.active:
            await self._tell(name)

    async def sweep(self) -> None:
        """Drop all descriptors that were left and not taken."""
        for name in self.left():
            logger.info("dropping %s, which is no longer needed", name)
            await self.remove(name)

    async def run(self) -> None:
        """Send the service manager the changes it missed, as soon as it reads again."""
        while True:
            await self._has_missed.wait()
            name = next(iter(self._missed))
            del self._missed[name]  # it may change again meanwhile
            await self._send(name)
            if not self._missed:
                self._has_missed = trio.Event()
                logger.info("the service manager reads again and has been told what it missed")

    async def _tell(self, name: str) -> None:
        with trio.move_on_after(DEAF_LIMIT if self._is_deaf else KEEP_LIMIT):
            await self._send(name)
            self._is_deaf = False
            return
        if not self._is_deaf:
            logger.warning(
                "the service manager does not read its messages: until it does, new state of the "
                "VM would not survive a restart"
            )
        self._is_deaf = True
        self._missed[name] = None
        self._has_missed.set()

    async def _send(self, name: str) -> None:
        """Have the service manager store the descriptor of a name, or drop it."""
        assert self._notifier is not None
        fd = self._kept.get(name)
        if fd is None or fd.closed:
            await self._notifier.send(fdstore_remove(name))
        else:
            await self._notifier.send(fdstore(name), [fd])


def numbered(prefix: str, names: Iterable[str]) -> list[int]:
    """The numbers between prefix and the next "-" or "@", in order; skips other names."""
    found = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    texts = (re.split("[-@]", text, maxsplit=1)[0] for text in found)
    return sorted(int(text) for text in texts if text.isascii() and text.isdecimal())

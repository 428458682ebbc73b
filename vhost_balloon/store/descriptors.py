"""Descriptors that outlive this process, by short names of our own.

systemd keeps what is sent to it with FDSTORE=1 and hands all of it to the next process of the
service. This program hands the same descriptors, under the same names, to itself when it
re-executes in place, with a service manager or without one; so there is one reader for both.

Only what this program made itself is ever sent to the service manager: the lock, the record, the
reply pipe, the shelf, listening sockets and the accepted connection. systemd calls fstat() on what
it is given, and a descriptor of a front end's (a file whose server is silent) would hang it. Those
are on the shelf (vhost_balloon.store.shelf).

A name means one thing for as long as the service exists: what is made anew gets another number. So
if the service manager gets a message late, or not at all, the next process can tell the old
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

"""Begins all names, so that none is a handed-over socket's."""
LOCK: Final = ".lock"
PIPE: Final = ".pipe"
RECORD: Final = ".record-"
CONNECTION: Final = ".connection-"
LISTENER: Final = ".listener-"
SHELF: Final = ".shelf-"
"""Names, and what begins those that something follows."""

KEEP_LIMIT: Final = 10.0
DEAF_LIMIT: Final = 0.01
"""Seconds that a descriptor waits for the service manager, and while that does not read. systemd
reads nothing for some 0.1 s while it starts a unit, and it may have to start many."""


class Store:
    """What outlives this process, and what the process before it left.

    limit: how many descriptors the service manager keeps, 0 if there is no store. inherited: what
    was left, by name.
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
        """The highest number given away behind a prefix."""
        self._kept: dict[str, OwnedFd] = {}
        self._is_deaf = False
        """The service manager did not take what it was told last."""
        self._missed: dict[str, None] = {}
        self._has_missed = trio.Event()
        """Names of which it does not know what became of them; set while there are any."""

    @property
    def active(self) -> bool:
        """Whether anything outlives this process without its help."""
        return self._limit > 0

    @property
    def kept(self) -> dict[str, OwnedFd]:
        """What outlives this process now, by name; the descriptors are their users'."""
        return {name: fd for name, fd in self._kept.items() if not fd.closed}

    @property
    def is_behind(self) -> bool:
        """Whether the service manager does not know yet what became of something."""
        return self._has_missed.is_set()

    def left(self, prefix: str = PREFIX) -> list[str]:
        """Names of what was left and not taken yet that begin with prefix."""
        return [name for name in self._left if name.startswith(prefix)]

    def new_number(self, prefix: str) -> int:
        """A number that no name with this prefix has had, here or in the process before."""
        known = (self._numbers[prefix], *numbered(prefix, self._inherited))
        self._numbers[prefix] = max(known) + 1
        return self._numbers[prefix]

    def look(self, name: str) -> OwnedFd:
        """What was left under a name, only to look at."""
        return self._left[name]

    def take(self, name: str) -> OwnedFd | None:
        """Go on with what was left under a name. It is still stored."""
        fd = self._left.pop(name, None)
        if fd is not None:
            self._kept[name] = fd
        return fd

    async def keep(self, name: str, fd: OwnedFd, *, is_ours: bool = True) -> None:
        """Have a descriptor outlive this process; it stays its user's.

        What is not ours is handed over by an upgrade in place only, and never goes to the service
        manager. If that does not read, a warning says that the descriptor would be lost with this
        process, and run() tells it later.
        """
        self._kept[name] = fd
        if self.active and is_ours:
            await self._tell(name)

    async def remove(self, name: str) -> None:
        """Forget what was kept or left under a name."""
        self._kept.pop(name, None)
        left = self._left.pop(name, None)
        if left is not None:
            left.close()
        if self.active:
            await self._tell(name)

    async def sweep(self) -> None:
        """Forget all that was left and not taken."""
        for name in self.left():
            logger.info("what was left as %s is needed no more", name)
            await self.remove(name)

    async def run(self) -> None:
        """Tell the service manager what it missed, as soon as it reads again."""
        while True:
            await self._has_missed.wait()
            name = next(iter(self._missed))
            del self._missed[name]  # it may change again meanwhile
            await self._send(name)
            if not self._missed:
                self._has_missed = trio.Event()
                logger.info("the service manager reads again, and was told what it missed")

    async def _tell(self, name: str) -> None:
        with trio.move_on_after(DEAF_LIMIT if self._is_deaf else KEEP_LIMIT):
            await self._send(name)
            self._is_deaf = False
            return
        if not self._is_deaf:
            logger.warning(
                "the service manager does not read: until it does, what is new of the VM would not "
                "survive a restart"
            )
        self._is_deaf = True
        self._missed[name] = None
        self._has_missed.set()

    async def _send(self, name: str) -> None:
        """Have the service manager keep what is kept under a name, or forget it."""
        assert self._notifier is not None
        fd = self._kept.get(name)
        if fd is None or fd.closed:
            await self._notifier.send(fdstore_remove(name))
        else:
            await self._notifier.send(fdstore(name), [fd])


def numbered(prefix: str, names: Iterable[str]) -> list[int]:
    """The numbers behind prefix, up to "-" or "@", in order; what is no number is left out."""
    found = (name.removeprefix(prefix) for name in names if name.startswith(prefix))
    texts = (re.split("[-@]", text, maxsplit=1)[0] for text in found)
    return sorted(int(text) for text in texts if text.isascii() and text.isdecimal())

"""Replaces the running program by the installed one when the operator asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from vhost_balloon.daemon.sockets import Sockets
from vhost_balloon.errors import CommandError
from vhost_balloon.log.lines import logger
from vhost_balloon.restart import upgrade
from vhost_balloon.service.systemd import READY, Notifier, reloading
from vhost_balloon.vm.vm import Vm

RELOADING_LIMIT: Final = 1.0
"""Seconds that an upgrade waits for the service manager to accept the notification."""


@dataclass(slots=True)
class Successor:
    """The installed program."""

    notifier: Notifier
    vm: Vm
    is_arriving: Callable[[], bool]
    sockets: Sockets
    _wanted: trio.Event = field(default_factory=trio.Event)
    _is_checked: bool = False

    def want(self, *, is_checked: bool = True) -> None:
        """Re-execute soon. is_checked: whether check() has succeeded already."""
        self._is_checked = is_checked
        self._wanted.set()

    async def check(self) -> None:
        """Check that the program would start, unless a service manager would start it again.

        Raises CommandError.
        """
        if self.vm.waits_for_lock:
            raise CommandError("the previous process still has the VM and cannot be killed")
        if not self.vm.store.active:
            await upgrade.check(self.sockets.handed_over())

    async def run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            try:
                if not self._is_checked:
                    await self.check()
                await self._execute()
            except CommandError as error:
                logger.error("not re-executed: %s", error)

    async def _execute(self) -> None:
        """Returns only by CommandError."""
        with trio.move_on_after(RELOADING_LIMIT):
            await self.notifier.send(reloading())
        try:
            await upgrade.execute(self.vm, self.is_arriving, self.sockets.handed_over())
        finally:
            await self.notifier.send(READY)

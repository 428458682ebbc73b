"""BALLOON_CHANGE: held back as QEMU does, so that no guest can flood the clients.

The first change is told at once. Those of the second after it are held, and at its end the last of
them is told, which begins another second.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import trio

from protocol import qmp
from vhost_balloon.containment import InternalErrors
from vhost_balloon.vm.vm import Vm

EVENT: Final = "BALLOON_CHANGE"
INTERVAL: Final = 1.0
"""Seconds between two events."""


class BalloonEvents:
    """Tells broadcast(event) of changes; its timer runs in nursery. One that fails is counted in
    errors, and the next change starts another."""

    def __init__(
        self,
        nursery: trio.Nursery,
        broadcast: Callable[[qmp.Object], None],
        errors: InternalErrors,
    ) -> None:
        self._nursery = nursery
        self._broadcast = broadcast
        self._errors = errors
        self._is_holding = False
        self._held: float | None = None
        """When the change was that is held."""

    def changed(self, vm: Vm) -> None:
        """The VM's actual has changed. On the guest's hot path: while events are held, it is cheap.

        Only the time is kept of a change that is held, and the value is read when it is told.
        """
        if self._is_holding:
            self._held = time.time()
        else:
            self._tell(vm, time.time())
            self._is_holding = True
            self._nursery.start_soon(self._hold, vm)

    async def _hold(self, vm: Vm) -> None:
        try:
            with self._errors.contained("events"):
                while True:
                    await trio.sleep(INTERVAL)
                    timestamp, self._held = self._held, None
                    if timestamp is None:
                        return
                    self._tell(vm, timestamp)
        finally:
            self._is_holding = False

    def _tell(self, vm: Vm, timestamp: float) -> None:
        actual = vm.statistics(details=False).actual
        if actual is not None:  # its front end may have gone meanwhile
            self._broadcast(qmp.event(EVENT, {"actual": actual, "id": vm.id}, timestamp))

"""BALLOON_CHANGE, limited in rate as in QEMU, so that no guest can flood the clients.

The first change is sent at once. Changes within the next second are held; at its end the last of
them is sent, which starts another second.
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
    """Calls broadcast(event) for changes. The timer runs in nursery; if it fails, that is counted
    in errors, and the next change starts another."""

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
        """The time of the change that is held."""

    def changed(self, vm: Vm) -> None:
        """The VM's actual has changed. On the guest's hot path: cheap while events are held.

        A held change is kept as its time only; the value is read when it is sent.
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
        if actual is not None:  # the front end may have gone in the meantime
            self._broadcast(qmp.event(EVENT, {"actual": actual, "id": vm.id}, timestamp))

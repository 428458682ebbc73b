"""The VMs in the folders of control sockets, kept from one look at the folders to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Generic, Protocol, TypeVar

import trio

from vhost_balloon.hub.folders import Found, Listing, look
from vhost_balloon.hub.link import Shared
from vhost_balloon.threads import Thread

HANGS: Final = "the folders of control sockets cannot be read: their file system hangs"


class Vm(Protocol):
    """A VM's daemon. found: its socket."""

    @property
    def found(self) -> Found: ...

    def close(self) -> None:
        """Close the connection."""


V = TypeVar("V", bound=Vm)


class Known(Generic[V]):
    """The VMs, by their labels."""

    def __init__(
        self, folders: Sequence[Path], most: int, make: Callable[[str, Found, Shared], V]
    ) -> None:
        """most: how many VMs can have a connection. make: returns a VM with its label, which opens
        no connection yet."""
        self._folders: Final = folders
        self._most: Final = most
        self._make: Final = make
        self._shared: Final = Shared()
        self._thread: Final = Thread()
        self.vms: dict[str, V] = {}
        self.problems: list[str] = []
        """Lines for the operator, of the last renewal."""
        self.failure = ""
        """Why there may be VMs that the last renewal did not find; "" if there are none."""

    def close(self) -> None:
        """Close all connections, and forget the VMs until the next renewal."""
        for vm in self.vms.values():
            vm.close()
        self.vms = {}
        self.problems = []

    async def renew(self, sift: Callable[[Listing], None] = lambda listing: None) -> None:
        """Look at the folders. VMs whose folder cannot be read in time stay.

        sift: takes sockets out of the listing that are not to be used.
        """
        known = {label: vm.found for label, vm in self.vms.items()}
        try:
            listing = await self._thread.run(partial(look, self._folders, self._most, known))
        except trio.TooSlowError:
            self._shared.hangs = True
            self.problems, self.failure = [HANGS], HANGS
            return
        self._shared.hangs = False
        sift(listing)
        self.problems, self.failure = listing.problems, listing.failure
        before, self.vms = self.vms, {}
        for label, found in listing.sockets.items():
            vm = before.get(label)
            if vm is not None and vm.found == found:
                self.vms[label] = before.pop(label)
            else:
                self.vms[label] = self._make(label, found, self._shared)
        for vm in before.values():
            vm.close()

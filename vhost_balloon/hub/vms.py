"""All current VMs of a host, and the answers of their daemons.

Nothing runs between scrapes, but connections are kept from one scrape to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import trio

from vhost_balloon.containment import InternalErrors
from vhost_balloon.hub.connection import Unanswered
from vhost_balloon.hub.folders import MAX_VMS, REMEDY, Found, Listing
from vhost_balloon.hub.known import Known
from vhost_balloon.hub.link import Link, Shared
from vhost_balloon.log.lines import VmLog, logger
from vhost_balloon.metrics.document import BadDocument, Document, checked

PATIENCE: Final = 1.0
"""Seconds for a VM's answer, including connection and negotiation."""

HUB_PLACES: Final = (
    "control",
    "control-client",
    "log",
    "metrics",
    "metrics-client",
    "policy",
    "reload",
    "status",
    "vm",
    "watchdog",
)
"""Where failures of the hub are contained; the values of the metric's label."""


class HostVm:
    """A VM as the hub sees it."""

    def __init__(self, label: str, found: Found, shared: Shared) -> None:
        self.found: Final = found
        self._link = Link(found, shared)
        self._log = VmLog(label)
        self._answers = True

    def close(self) -> None:
        """Close the connection; the next ask() opens another."""
        self._link.close()

    async def ask(self) -> Document | None:
        """Its snapshot; None if the daemon gives none within PATIENCE, which is logged once."""
        problem = f"no answer within {PATIENCE:g} s"
        with trio.move_on_after(PATIENCE):
            try:
                document = _only(await self._link.execute("query-vms"))
            except (Unanswered, BadDocument) as error:
                problem = str(error)
            except OSError as error:
                problem = f"{error.strerror or error}"
            else:
                if not self._answers:
                    self._log.info("its daemon answers again")
                self._answers = True
                return document
        self.close()
        if self._answers:
            self._log.misbehaved(f"no figures: {problem}")
        self._answers = False
        return None


def _only(answer: Any) -> Document:
    """The snapshot of the one VM that a daemon has. Raises BadDocument."""
    if not isinstance(answer, list) or len(answer) != 1:
        raise BadDocument("its answer is not a list of one VM")
    try:
        return checked(answer[0])
    except BadDocument as error:
        raise BadDocument(f"its answer is invalid: {error}") from None


class Host:
    """The VMs whose control sockets are in folders. Failures with one are contained in errors."""

    def __init__(
        self, folders: Sequence[Path], errors: InternalErrors, most: int = MAX_VMS
    ) -> None:
        self._errors: Final = errors
        self._known: Final = Known(folders, most, HostVm)
        self._owners: dict[str, str] = {}
        """The path of the first socket of each name that exists, so that another VM's does not
        continue its series once it has gone."""
        self._said: list[str] = []

    def close(self) -> None:
        self._known.close()

    async def snapshots(self) -> list[tuple[str, Document | None]]:
        """Each VM's label and its snapshot, or None; takes at most PATIENCE, and as long to read
        the folders. Do not call it again before it returns."""
        await self._known.renew(self._sift)
        self._say(self._known.problems)
        vms = self._known.vms
        found: dict[str, Document | None] = dict.fromkeys(vms)
        async with trio.open_nursery() as nursery:
            for label, vm in vms.items():
                nursery.start_soon(self._ask, vm, label, found)
        return list(found.items())

    async def _ask(self, vm: HostVm, label: str, found: dict[str, Document | None]) -> None:
        with self._errors.contained("vm"):
            found[label] = await vm.ask()

    def _sift(self, listing: Listing) -> None:
        owners, self._owners = self._owners, {}
        for label, found in [*listing.sockets.items()]:
            owner = self._owners[label] = owners.get(label, found.path)
            if owner != found.path:
                del listing.sockets[label]
                listing.trouble(
                    f"{found.path} is left out: it has the name of {owner}, which is gone, and "
                    f"would continue its figures; {REMEDY}, or restart the hub"
                )

    def _say(self, problems: list[str]) -> None:
        """Log each problem once while it lasts."""
        for problem in problems:
            if problem not in self._said:
                logger.warning("%s", problem)
        self._said = problems

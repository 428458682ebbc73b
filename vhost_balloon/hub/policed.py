"""The VMs of a host as the policy asks and orders them, by their control sockets.

Connections are the policy's own: a scrape and a tick never wait for each other. All VMs are asked
at once, and a daemon that hangs, lies or floods costs its own VM its part in the tick.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import trio

from protocol.qmp import ErrorClass, Object
from vhost_balloon.clock import boottime
from vhost_balloon.containment import InternalErrors
from vhost_balloon.errors import CommandError, StateError
from vhost_balloon.hub.connection import Refused, Unanswered
from vhost_balloon.hub.folders import MAX_VMS, Found
from vhost_balloon.hub.known import Known
from vhost_balloon.hub.link import Link, Shared
from vhost_balloon.hub.vm_figures import read_policed
from vhost_balloon.hub.vms import PATIENCE
from vhost_balloon.log.lines import VmLog
from vhost_balloon.policy.inputs import VmSettings
from vhost_balloon.policy.interfaces import Policed
from vhost_balloon.policy.settings import PolicySettings
from vhost_balloon.printable import printable

TOO_OLD: Final = "its daemon is older than the policy: upgrade it"
SAMPLE_TIME: Final = 0.3
"""Seconds that a guest has to give statistics that it is asked for."""


class PolicedVm:
    """A VM's daemon."""

    def __init__(self, label: str, found: Found, shared: Shared) -> None:
        self.found: Final = found
        self._link = Link(found, shared)
        self._log = VmLog(label)
        self._busy = trio.Lock()
        self.problem = ""
        """Why it did not answer when it was last looked at."""

    def close(self) -> None:
        self._link.close()

    async def look(
        self, settings: VmSettings, clock: Callable[[], float], *, poll: bool
    ) -> Policed | None:
        """The VM; None if its daemon gives no proper answer within PATIENCE, which is logged once.

        poll: ask the guest for statistics first.
        """
        problem = f"no answer within {PATIENCE:g} s"
        with trio.move_on_after(PATIENCE):
            try:
                answer = await self._ask(poll=poll)
                identity = _identity(self.found)
                policed = read_policed(answer, identity, settings, clock())
            except (Unanswered, StateError) as error:
                problem = printable(str(error))
            except (OSError, trio.ClosedResourceError) as error:
                problem = _text(error)
            else:
                if self.problem:
                    self._log.info("the policy has its figures again")
                self.problem = ""
                return policed
        if not self.problem:
            self._log.misbehaved(f"the policy leaves it out: {problem}")
        self.problem = problem
        return None

    async def _ask(self, *, poll: bool) -> Any:
        async with self._busy:
            if poll:
                try:
                    await self._link.execute("balloon-request-stats")
                except Refused:
                    pass  # an older daemon, or a guest that gives none
                else:
                    await trio.sleep(SAMPLE_TIME)
            return await self._link.execute("query-vms")

    async def execute(self, command: str, arguments: Object) -> None:
        """Carry out a command. Raises CommandError, also without an answer within PATIENCE."""
        with trio.move_on_after(PATIENCE):
            try:
                async with self._busy:
                    await self._link.execute(command, arguments)
            except Refused as error:
                hint = f": {TOO_OLD}" if error.is_unknown else ""
                raise CommandError(f"{error.reason}{hint}") from None
            except Unanswered as error:
                raise CommandError(f"its daemon gives no proper answer: {error}") from None
            except (OSError, trio.ClosedResourceError) as error:
                raise CommandError(f"its daemon does not answer: {_text(error)}") from None
            return
        raise CommandError(f"its daemon gives no answer within {PATIENCE:g} s")


def _text(error: OSError | trio.ClosedResourceError) -> str:
    """The latter, or EBADF: the policy was switched off in the meantime, or the VM has gone."""
    if isinstance(error, OSError) and error.errno != errno.EBADF:
        return error.strerror or str(error)
    return "connection closed"


def _identity(found: Found) -> str:
    return "-".join(map(str, found.identity))


class PolicedVms:
    """The VMs whose control sockets are in folders. Failures with one are contained in errors, in
    the place "vm"."""

    def __init__(
        self,
        folders: Sequence[Path],
        errors: InternalErrors,
        most: int = MAX_VMS,
        clock: Callable[[], float] = boottime,
    ) -> None:
        """most: how many VMs can have a connection. clock: that of their samples' times."""
        self._errors: Final = errors
        self._clock: Final = clock
        self._known: Final = Known(folders, most, PolicedVm)

    def close(self) -> None:
        """Close all connections; the next call opens them again."""
        self._known.close()

    async def look(
        self, settings: PolicySettings, poll: Collection[str], only: Collection[str] | None = None
    ) -> Mapping[str, Policed]:
        """The VMs whose daemons answer; takes at most PATIENCE, and as long to read the folders."""
        found: dict[str, Policed] = {}

        async def ask(name: str, vm: PolicedVm) -> None:
            policed = await vm.look(settings.of(name), self._clock, poll=name in poll)
            if policed is not None:
                found[name] = policed

        if only is None:
            await self._known.renew()
        await self._each(ask, self._known.vms if only is None else only)
        return found

    @property
    def left_out(self) -> Mapping[str, str]:
        return {name: vm.problem for name, vm in self._known.vms.items() if vm.problem}

    @property
    def problems(self) -> Sequence[str]:
        return self._known.problems

    @property
    def failure(self) -> str:
        return self._known.failure

    async def order(self, targets: Mapping[str, int]) -> Mapping[str, str]:
        """Set targets, marked as the policy's. Returns why an order was refused."""
        refused = dict.fromkeys(targets, "it has gone")

        async def order(name: str, vm: PolicedVm) -> None:
            try:
                await vm.execute("balloon", {"value": max(targets[name], 1), "policy": True})
            except CommandError as error:
                refused[name] = str(error)
            else:
                del refused[name]

        await self._each(order, targets)
        return refused

    async def hold(self, name: str, seconds: int | None) -> None:
        """Raises CommandError."""
        await (await self._vm(name)).execute(
            "policy-hold", {} if seconds is None else {"seconds": seconds}
        )

    async def release(self, name: str) -> None:
        """Raises CommandError."""
        await (await self._vm(name)).execute("policy-release", {})

    async def _vm(self, name: str) -> PolicedVm:
        """Raises CommandError if there is none of that name."""
        known = self._known
        if name not in known.vms:
            await known.renew()
        if name in known.vms:
            return known.vms[name]
        if known.failure:
            raise CommandError(f"Device '{name}' is not known: {known.failure}")
        raise CommandError(f"Device '{name}' not found", ErrorClass.DEVICE_NOT_FOUND.value)

    async def _each(
        self, call: Callable[[str, PolicedVm], Awaitable[None]], names: Collection[str]
    ) -> None:
        """Call for all VMs of these names at once; a failure of ours with one costs that VM."""

        async def contained(name: str, vm: PolicedVm) -> None:
            with self._errors.contained("vm"):
                await call(name, vm)

        async with trio.open_nursery() as nursery:
            for name, vm in self._known.vms.items():
                if name in names:
                    nursery.start_soon(contained, name, vm)

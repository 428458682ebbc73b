"""The commands by which an operator changes the daemon itself: its settings, its program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from protocol.qmp import Json
from vhost_balloon.control.commands import Command
from vhost_balloon.daemon.reload import Configuration
from vhost_balloon.errors import CommandError, OperatorError
from vhost_balloon.vm.vm import Vm


class Successor(Protocol):
    """The program that takes this one's place."""

    async def check(self) -> None:
        """See that it has all that it needs. Raises CommandError."""

    def want(self) -> None:
        """Become it soon."""


def service_commands(configuration: Configuration, successor: Successor) -> Mapping[str, Command]:
    """The commands, by name."""

    async def upgrade(vm: Vm, arguments: dict[str, Any]) -> Json:
        await successor.check()
        return {}

    async def reload(vm: Vm, arguments: dict[str, Any]) -> Json:
        try:
            return {"changed": list(await configuration.reload())}
        except OperatorError as error:  # what is a mistake at the start is a command's failure here
            raise CommandError(str(error)) from None

    return {
        "config-reload": Command(reload),
        "upgrade": Command(upgrade, then=successor.want),
    }

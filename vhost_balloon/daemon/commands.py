"""QMP commands that change the daemon itself: config-reload and upgrade."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from protocol.qmp import Json
from vhost_balloon.daemon.reload import Configuration
from vhost_balloon.errors import CommandError, OperatorError
from vhost_balloon.qmp_server.command import Command
from vhost_balloon.vm.vm import Vm


class Successor(Protocol):
    """The program that replaces this one (daemon/successor.py)."""

    async def check(self) -> None:
        """Check that it would start. Raises CommandError."""

    def want(self) -> None:
        """Re-execute soon."""


def service_commands(
    configuration: Configuration, successor: Successor
) -> Mapping[str, Command[Vm]]:
    """The commands, by name."""

    async def upgrade(vm: Vm, arguments: dict[str, Any]) -> Json:
        await successor.check()
        return {}

    async def reload(vm: Vm, arguments: dict[str, Any]) -> Json:
        try:
            return {"changed": list(await configuration.reload())}
        except OperatorError as error:  # at the start; here a command failed
            raise CommandError(str(error)) from None

    return {
        "config-reload": Command(reload, returns="ConfigChanges"),
        "upgrade": Command(upgrade, then=lambda vm: successor.want()),
    }

"""The control socket's commands that change what is served: vm-add, vm-del, config-reload, and
upgrade."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Protocol

from protocol.qmp import Json
from vhost_balloon.control_commands import Command, Parameter
from vhost_balloon.errors import CommandError, OperatorError
from vhost_balloon.fleet import Fleet
from vhost_balloon.reload import Configuration
from vhost_balloon.vm import Machine
from vhost_balloon.vm_settings import SWITCHES, SettingError, settings_from_json
from vhost_balloon.vm_spec import Origin, VmSpec, read_id, read_socket_path

SETTING_KINDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(SWITCHES, "boolean"),
    "discard": "string",
    "discard-hugetlb": "boolean",
    "discard-other-filesystems": "boolean",
    "stats-interval": "number",
    "target": "integer",
    "report-rate": "integer",
    "socket-mode": "string",
    "socket-group": "string",
}
"""Each of vm_settings.SETTINGS, and its type in QMP."""

_ID: Final = Parameter("id", "string")


class Successor(Protocol):
    """The program that takes this one's place."""

    async def check(self) -> None:
        """See that it has all that it needs. Raises CommandError."""

    def want(self) -> None:
        """Become it soon."""


def fleet_commands(
    fleet: Fleet, configuration: Configuration, successor: Successor
) -> Mapping[str, Command]:
    """The commands, by name, over these VMs."""

    async def add(machine: Machine, arguments: dict[str, Any]) -> Json:
        with _mistakes():
            values = {key: value for key, value in arguments.items() if key in SETTING_KINDS}
            vm = fleet.add(
                VmSpec(
                    read_id(arguments["id"]),
                    settings_from_json(values, configuration.defaults),
                    read_socket_path(arguments["socket-path"]),
                    Origin.CONTROL,
                )
            )
        await fleet.kept(vm)
        return {}

    def remove(machine: Machine, arguments: dict[str, Any]) -> Json:
        fleet.remove(arguments["id"])
        return {}

    async def upgrade_(machine: Machine, arguments: dict[str, Any]) -> Json:
        await successor.check()
        return {}

    async def reload(machine: Machine, arguments: dict[str, Any]) -> Json:
        with _mistakes():
            return dict(await configuration.reload())

    settings = (Parameter(key, kind, optional=True) for key, kind in SETTING_KINDS.items())
    return {
        "vm-add": Command(add, (_ID, Parameter("socket-path", "string"), *settings)),
        "vm-del": Command(remove, (_ID,)),
        "config-reload": Command(reload),
        "upgrade": Command(upgrade_, then=successor.want),
    }


@contextmanager
def _mistakes() -> Iterator[None]:
    """What is an operator's mistake at the start is a command's failure here."""
    try:
        yield
    except SettingError as error:
        raise CommandError(f"Parameter '{error.key}' {error.text}") from None
    except OperatorError as error:
        raise CommandError(str(error)) from None

"""The commands of the hub's control socket: a table of their arguments, results and handlers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from protocol.qmp import Json, Object
from vhost_balloon.errors import CommandError, OperatorError
from vhost_balloon.policy.release import Released
from vhost_balloon.policy.report import Report, describe
from vhost_balloon.policy.settings import Mode
from vhost_balloon.qmp_server.command import Command, Parameter


class Policy(Protocol):
    """What operators ask of the policy (policy/runner.py)."""

    def report(self) -> Report: ...

    async def set_mode(self, mode: Mode) -> None:
        """Change the mode until the next start, or until another one is configured. Raises
        CommandError."""

    async def hold(self, name: str, seconds: int | None) -> None:
        """Leave a VM alone, for ever or for a time. Raises CommandError."""

    async def release(self, name: str) -> None:
        """End a VM's hold. Raises CommandError."""

    async def release_all(self) -> Released:
        """End all holds, and begin to raise all targets to the VMs' ceilings. Raises
        CommandError."""


class Configuration(Protocol):
    """The configuration files (reload.py)."""

    async def reload(self) -> Sequence[str]:
        """Returns the names of the settings that changed. Raises OperatorError."""


@dataclass(frozen=True, slots=True)
class Hub:
    """What the commands act on."""

    policy: Policy
    configuration: Configuration


def _query_policy(hub: Hub, arguments: dict[str, Any]) -> Json:
    return describe(hub.policy.report())


async def _policy_mode(hub: Hub, arguments: dict[str, Any]) -> Json:
    await hub.policy.set_mode(Mode(arguments["mode"]))
    return {}


async def _policy_hold(hub: Hub, arguments: dict[str, Any]) -> Json:
    await hub.policy.hold(arguments["id"], arguments.get("seconds"))
    return {}


async def _policy_release(hub: Hub, arguments: dict[str, Any]) -> Json:
    if "id" in arguments:
        await hub.policy.release(arguments["id"])
        return {}
    released = await hub.policy.release_all()
    failed: Object = {"failed": dict(released.failed)} if released.failed else {}
    return {"left": list(released.left), **failed}


async def _reload(hub: Hub, arguments: dict[str, Any]) -> Json:
    try:
        return {"changed": list(await hub.configuration.reload())}
    except OperatorError as error:  # at the start; here a command failed
        raise CommandError(str(error)) from None


_MODES: Final = tuple(mode.value for mode in Mode)
_SECONDS: Final = Parameter("seconds", "int", optional=True)

COMMANDS: Final[Mapping[str, Command[Hub]]] = {
    "query-policy": Command(_query_policy, returns="PolicyInfo"),
    "policy-mode": Command(_policy_mode, (Parameter("mode", "PolicyMode", values=_MODES),)),
    "policy-hold": Command(_policy_hold, (Parameter("id", "str"), _SECONDS)),
    "policy-release": Command(
        _policy_release, (Parameter("id", "str", optional=True),), "PolicyReleased"
    ),
    "config-reload": Command(_reload, returns="ConfigChanges"),
}
"""All commands except those of every server (qmp_server/)."""

"""The event and the types of the hub's control socket, for query-qmp-schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from protocol.qmp import Json
from vhost_balloon.figures.policy_info import PARTS, POLICY_INFO
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.hub.commands import Hub
from vhost_balloon.hub.events import EVENT, ORDER, ORDERED
from vhost_balloon.policy.settings import Mode
from vhost_balloon.qmp_server.command import Command
from vhost_balloon.qmp_server.schema import Members
from vhost_balloon.qmp_server.schema import describe as describe_all

_ENUMS: Final = {
    "PolicyMode": tuple(mode.value for mode in Mode),
    "PolicyReason": tuple(reason.value for reason in Reason),
}
_OBJECTS: Final[Mapping[str, Members]] = {
    "ConfigChanges": {"changed": "[str]"},
    "PolicyInfo": POLICY_INFO,
    "PolicyOrder": ORDER,
    "PolicyReleased": {"*left": "[str]", "*failed": "any"},
    **PARTS,
}


def describe(commands: Mapping[str, Command[Hub]]) -> Json:
    return describe_all(commands, {EVENT: ORDERED}, _ENUMS, _OBJECTS)

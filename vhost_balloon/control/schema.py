"""The events and types of the control socket, for query-qmp-schema.

VmInfo comes from figures/vm_info.py and vm/settings.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from protocol.qmp import Json
from vhost_balloon.containment import PLACES
from vhost_balloon.control.events import EVENT
from vhost_balloon.figures.discard_policy import DiscardMode
from vhost_balloon.figures.refusal import PAUSE_REASONS
from vhost_balloon.figures.statistics import VmState
from vhost_balloon.figures.vm_info import PARTS, VM_INFO
from vhost_balloon.qmp_server.command import Command
from vhost_balloon.qmp_server.schema import Members
from vhost_balloon.qmp_server.schema import describe as describe_all
from vhost_balloon.vm.settings import SETTINGS, VmSettings
from vhost_balloon.vm.vm import Vm

_EVENTS: Final = {EVENT: {"actual": "int", "id": "str"}}
_ENUMS: Final = {
    "VmState": tuple(state.value for state in VmState),
    "DiscardMode": tuple(mode.value for mode in DiscardMode),
    "PauseReason": PAUSE_REASONS,
}
_OBJECTS: Final[Mapping[str, Members]] = {
    "Accepted": {"*pending": "bool"},
    "BalloonInfo": {"actual": "int"},
    "ConfigChanges": {"changed": "[str]"},
    "MemoryInfo": {"base-memory": "int"},
    "NameInfo": {"*name": "str"},
    "ObjectPropertyInfo": {"name": "str", "type": "str"},
    "ObjectPropertyValue": {"name": "str", "type": "str", "*value": "any"},
    "ObjectPropertiesValues": {"properties": "[ObjectPropertyValue]"},
    "GuestStats": {"stats": "GuestStatValues", "last-update": "int"},
    "VmInfo": VM_INFO,
    "VmSettings": {
        "*" * (setting.get(VmSettings()) is None) + key: setting.kind.qmp
        for key, setting in SETTINGS.items()
    },
    "InternalErrors": {f"*{where}": "int" for where in PLACES},
    **PARTS,
}
"""Members and their types, marked as in figures/vm_info.py."""


def describe(commands: Mapping[str, Command[Vm]]) -> Json:
    return describe_all(commands, _EVENTS, _ENUMS, _OBJECTS)

"""query-qmp-schema: the commands and events of the control socket, described the way QEMU does it.

Source: QEMU qapi/introspect.json, SchemaInfo. Commands with their arguments and return types come
from the tables of commands, VmInfo from figures/vm_info.py and vm/settings.py. Tests check replies
against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from protocol.qmp import Json, Object
from vhost_balloon.containment import PLACES
from vhost_balloon.control.command import EMPTY, Command
from vhost_balloon.control.events import EVENT
from vhost_balloon.figures.discard_policy import DiscardMode
from vhost_balloon.figures.refusal import PAUSE_REASONS
from vhost_balloon.figures.statistics import VmState
from vhost_balloon.figures.vm_info import PARTS, VM_INFO
from vhost_balloon.vm.settings import SETTINGS, VmSettings

_BUILTINS: Final = {
    "str": "string",
    "int": "int",
    "number": "number",
    "bool": "boolean",
    "any": "value",
}
_EVENTS: Final = {EVENT: {"actual": "int", "id": "str"}}
_ENUMS: Final = {
    "VmState": tuple(state.value for state in VmState),
    "DiscardMode": tuple(mode.value for mode in DiscardMode),
    "PauseReason": PAUSE_REASONS,
}
_OBJECTS: Final[Mapping[str, Mapping[str, str]]] = {
    EMPTY: {},
    "Accepted": {"*pending": "bool"},
    "BalloonInfo": {"actual": "int"},
    "CommandInfo": {"name": "str"},
    "ConfigChanges": {"changed": "[str]"},
    "MemoryInfo": {"base-memory": "int"},
    "NameInfo": {"*name": "str"},
    "ObjectPropertyInfo": {"name": "str", "type": "str"},
    "ObjectPropertyValue": {"name": "str", "type": "str", "*value": "any"},
    "ObjectPropertiesValues": {"properties": "[ObjectPropertyValue]"},
    "GuestStats": {"stats": "GuestStatValues", "last-update": "int"},
    "VersionInfo": {"qemu": "VersionTriple", "package": "str"},
    "VersionTriple": {"major": "int", "minor": "int", "micro": "int"},
    "VmInfo": VM_INFO,
    "VmSettings": {
        "*" * (setting.get(VmSettings()) is None) + key: setting.kind.qmp
        for key, setting in SETTINGS.items()
    },
    "InternalErrors": {f"*{where}": "int" for where in PLACES},
    **PARTS,
}
"""Members and their types, marked as in figures/vm_info.py."""


def describe(commands: Mapping[str, Command]) -> Json:
    """The SchemaInfo array of these commands and all events."""
    arguments = {
        f"q_obj_{name}-arg": {
            "*" * parameter.optional + parameter.name: parameter.type
            for parameter in command.parameters
        }
        for name, command in commands.items()
        if command.parameters
    }
    arguments |= {f"q_obj_{name}-arg": members for name, members in _EVENTS.items()}
    objects = {**_OBJECTS, **arguments}
    return [
        *(_command(name, command, arguments) for name, command in commands.items()),
        *(
            {"name": name, "meta-type": "event", "arg-type": f"q_obj_{name}-arg"}
            for name in _EVENTS
        ),
        *(_object(name, members) for name, members in objects.items()),
        *_enums(),
        *_arrays(objects.values(), commands.values()),
        *({"name": n, "meta-type": "builtin", "json-type": j} for n, j in _BUILTINS.items()),
    ]


def _command(name: str, command: Command, arguments: Mapping[str, object]) -> Object:
    argument = f"q_obj_{name}-arg"
    return {
        "name": name,
        "meta-type": "command",
        "arg-type": argument if argument in arguments else EMPTY,
        "ret-type": command.returns,
        "allow-oob": False,
    }


def _object(name: str, members: Mapping[str, str]) -> Object:
    """An optional member has a "default" in QMP, which is always null."""
    described: list[Json] = [
        {"name": member.removeprefix("*"), "type": kind}
        | ({"default": None} if member.startswith("*") else {})
        for member, kind in members.items()
    ]
    return {"name": name, "meta-type": "object", "members": described}


def _enums() -> Iterator[Object]:
    for name, values in _ENUMS.items():
        members: list[Json] = [{"name": value} for value in values]
        yield {"name": name, "meta-type": "enum", "members": members, "values": values}


def _arrays(objects: Iterable[Mapping[str, str]], commands: Iterable[Command]) -> Iterator[Object]:
    """Every array type in use."""
    kinds = {kind for members in objects for kind in members.values()}
    for kind in sorted(kinds | {command.returns for command in commands}):
        if kind.startswith("["):
            yield {"name": kind, "meta-type": "array", "element-type": kind.strip("[]")}

"""query-qmp-schema: the control socket's commands and events, described as QEMU describes its own.

Source: QEMU qapi/introspect.json, SchemaInfo. What a command takes comes from the table that its
arguments are checked by. What it returns is written down here; the tests hold replies against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from protocol.qmp import Json, Object
from protocol.virtio_balloon import STAT_NAMES, Queue
from vhost_balloon.containment import PLACES
from vhost_balloon.control.commands import Command
from vhost_balloon.control.events import EVENT
from vhost_balloon.errors import RingErrorReason
from vhost_balloon.figures.discard_policy import DiscardMode
from vhost_balloon.figures.refusal import EVERY_REASON
from vhost_balloon.figures.statistics import VmState
from vhost_balloon.vm.settings import SETTINGS

_BUILTINS: Final = {
    "str": "string",
    "int": "int",
    "number": "number",
    "bool": "boolean",
    "any": "value",
}
_KINDS: Final = {
    "integer": "int",
    "number": "number",
    "boolean": "bool",
    "string": "str",
    "array": "[str]",
    "any": "any",
}
"""Types of the table's kinds of parameters."""

_RING_QUEUES: Final = (*(queue.value for queue in Queue), "ring")
_EMPTY: Final = "q_empty"
_EVENTS: Final = {EVENT: {"actual": "int", "id": "str"}}
_ENUMS: Final = {
    "VmState": tuple(state.value for state in VmState),
    "DiscardMode": tuple(mode.value for mode in DiscardMode),
}

_VM_SIZES: Final = (
    "guest-memory", "*target", "*actual", "balloon", "*resident", "reported-bytes",
    "inflated-bytes", "deflated-bytes", "freed-bytes",
)  # fmt: skip
_OBJECTS: Final[Mapping[str, Mapping[str, str]]] = {
    _EMPTY: {},
    "Accepted": {"*pending": "bool"},
    "BalloonInfo": {"actual": "int"},
    "CommandInfo": {"name": "str"},
    "ConfigChanges": {"changed": "[str]"},
    "GuestStats": {"stats": "GuestStatValues", "last-update": "int"},
    "GuestStatValues": {f"*{name}": "int" for name in STAT_NAMES.values()},
    "Histogram": {"counts": "[int]", "sum": "number"},
    "HugePages": {"partial": "int", "whole": "int", "waiting-bytes": "int"},
    "Refused": {f"*{reason}": "int" for reason in EVERY_REASON},
    "InternalErrors": {f"*{where}": "int" for where in PLACES},
    "Requests": {f"*{queue.value}": "int" for queue in Queue},
    "RingErrorReasons": {f"*{reason.value}": "int" for reason in RingErrorReason},
    "RingErrors": {f"*{queue}": "RingErrorReasons" for queue in _RING_QUEUES},
    "VersionInfo": {"qemu": "VersionTriple", "package": "str"},
    "VersionTriple": {"major": "int", "minor": "int", "micro": "int"},
    "VmInfo": {
        "id": "str",
        "attached": "bool",
        "state": "VmState",
        "*settings": "VmSettings",
        "*socket-path": "str",
        "*front-end-pid": "int",
        "features": "[str]",
        "protocol-features": "[str]",
        "queues": "[VmQueue]",
        "regions": "[VmRegion]",
        **dict.fromkeys(_VM_SIZES, "int"),
        "pending": "bool",
        "driver-ready": "bool",
        "reporting-paused": "bool",
        "pause-reasons": "[str]",
        "queue-map-ambiguous": "bool",
        "stats": "GuestStatValues",
        "*stats-age": "number",
        "stats-interval": "number",
        "refused-bytes": "Refused",
        "refused-ranges": "Refused",
        "discard-seconds": "Histogram",
        "*report-rate": "int",
        "*huge-pages": "HugePages",
        "huge-pages-freed": "int",
        "requests": "Requests",
        "ring-errors": "RingErrors",
        "internal-errors": "InternalErrors",
        "front-end-errors": "int",
        "front-end-stalls": "int",
        "config-changes": "int",
    },
    "VmQueue": {
        "index": "int",
        "*queue": "str",
        "size": "int",
        "started": "bool",
        "enabled": "bool",
        "*broken": "str",
        "requests": "int",
    },
    "VmSettings": {
        "*" * setting.is_optional + key: setting.kind.qmp for key, setting in SETTINGS.items()
    },
    "VmRegion": {"guest-address": "int", "size": "int", "page-size": "int", "backing": "str"},
}
"""Members and their types; * marks one that may be missing, and [..] an array."""

_RETURNS: Final = {
    "balloon": "Accepted",
    "query-balloon": "BalloonInfo",
    "balloon-stats": "GuestStats",
    "query-vms": "[VmInfo]",
    "query-version": "VersionInfo",
    "config-reload": "ConfigChanges",
    "query-commands": "[CommandInfo]",
    "qom-get": "any",
    "query-qmp-schema": "[any]",
}
"""What commands return that return anything."""


def describe(commands: Mapping[str, Command]) -> Json:
    """The SchemaInfo array of these commands and of all events."""
    arguments = {
        f"q_obj_{name}-arg": {
            "*" * parameter.optional + parameter.name: _KINDS[parameter.kind]
            for parameter in command.parameters
        }
        for name, command in commands.items()
        if command.parameters
    }
    arguments |= {f"q_obj_{name}-arg": members for name, members in _EVENTS.items()}
    objects = {**_OBJECTS, **arguments}
    return [
        *(_command(name, arguments) for name in commands),
        *(
            {"name": name, "meta-type": "event", "arg-type": f"q_obj_{name}-arg"}
            for name in _EVENTS
        ),
        *(_object(name, members) for name, members in objects.items()),
        *_enums(),
        *_arrays(objects.values()),
        *({"name": n, "meta-type": "builtin", "json-type": j} for n, j in _BUILTINS.items()),
    ]


def _command(name: str, arguments: Mapping[str, object]) -> Object:
    argument = f"q_obj_{name}-arg"
    return {
        "name": name,
        "meta-type": "command",
        "arg-type": argument if argument in arguments else _EMPTY,
        "ret-type": _RETURNS.get(name, _EMPTY),
        "allow-oob": False,
    }


def _object(name: str, members: Mapping[str, str]) -> Object:
    """QMP says "default" where a member may be missing, and no value but null for it."""
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


def _arrays(objects: Iterable[Mapping[str, str]]) -> Iterator[Object]:
    """The array types that are named anywhere."""
    kinds = {kind for members in objects for kind in members.values()} | set(_RETURNS.values())
    for kind in sorted(kinds):
        if kind.startswith("["):
            yield {"name": kind, "meta-type": "array", "element-type": kind.strip("[]")}

"""query-qmp-schema: commands and events, described the way QEMU does it.

Source: QEMU qapi/introspect.json, SchemaInfo. Commands with their arguments and return types come
from the table of commands; events, enums and objects are the caller's. Tests check replies against
it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from protocol.qmp import Json, Object
from vhost_balloon.qmp_server.command import EMPTY, Command

Members: TypeAlias = Mapping[str, str]
"""Members and their types; "*" marks a member that may be left out."""

_BUILTINS: Final = {
    "str": "string",
    "int": "int",
    "number": "number",
    "bool": "boolean",
    "any": "value",
}
_COMMON: Final[Mapping[str, Members]] = {
    EMPTY: {},
    "CommandInfo": {"name": "str"},
    "VersionInfo": {"qemu": "VersionTriple", "package": "str"},
    "VersionTriple": {"major": "int", "minor": "int", "micro": "int"},
}
"""The results of commands that every server has."""


def describe(
    commands: Mapping[str, Command[Any]],
    events: Mapping[str, Members],
    enums: Mapping[str, Sequence[str]],
    objects: Mapping[str, Members],
) -> Json:
    """The SchemaInfo array of these commands, events and types. events: their members, by name."""
    arguments: dict[str, Members] = {
        f"q_obj_{name}-arg": {
            "*" * parameter.optional + parameter.name: parameter.type
            for parameter in command.parameters
        }
        for name, command in commands.items()
        if command.parameters
    }
    arguments |= {f"q_obj_{name}-arg": members for name, members in events.items()}
    described = {**_COMMON, **objects, **arguments}
    return [
        *(_command(name, command, arguments) for name, command in commands.items()),
        *({"name": name, "meta-type": "event", "arg-type": f"q_obj_{name}-arg"} for name in events),
        *(_object(name, members) for name, members in described.items()),
        *_enums(enums),
        *_arrays(described.values(), commands.values()),
        *({"name": n, "meta-type": "builtin", "json-type": j} for n, j in _BUILTINS.items()),
    ]


def _command(name: str, command: Command[Any], arguments: Mapping[str, object]) -> Object:
    argument = f"q_obj_{name}-arg"
    return {
        "name": name,
        "meta-type": "command",
        "arg-type": argument if argument in arguments else EMPTY,
        "ret-type": command.returns,
        "allow-oob": False,
    }


def _object(name: str, members: Members) -> Object:
    """An optional member has a "default" in QMP, which is always null."""
    described: list[Json] = [
        {"name": member.removeprefix("*"), "type": kind}
        | ({"default": None} if member.startswith("*") else {})
        for member, kind in members.items()
    ]
    return {"name": name, "meta-type": "object", "members": described}


def _enums(enums: Mapping[str, Sequence[str]]) -> Iterator[Object]:
    for name, values in enums.items():
        members: list[Json] = [{"name": value} for value in values]
        yield {"name": name, "meta-type": "enum", "members": members, "values": values}


def _arrays(objects: Iterable[Members], commands: Iterable[Command[Any]]) -> Iterator[Object]:
    """Every array type in use."""
    kinds = {kind for members in objects for kind in members.values()}
    for kind in sorted(kinds | {command.returns for command in commands}):
        if kind.startswith("["):
            yield {"name": kind, "meta-type": "array", "element-type": kind.strip("[]")}

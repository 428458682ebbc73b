"""Describes a QMP command, and checks its arguments."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

from protocol.qmp import Json, Object
from vhost_balloon.errors import CommandError

S = TypeVar("S")
"""What the commands act on."""

EMPTY: Final = "q_empty"
"""The return type of commands that return nothing."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument. type: "int" (64 bits, signed), "bool", "str", "[str]", "any", or the name of an
    enumeration of these values, as in the schema."""

    name: str
    type: str
    optional: bool = False
    values: Sequence[str] = ()


Handler: TypeAlias = Callable[[S, dict[str, Any]], "Json | Awaitable[Json]"]


@dataclass(frozen=True, slots=True)
class Command(Generic[S]):
    """A command.

    handler: gets the subject and checked arguments, and returns the reply's "return" or an
    awaitable of it; raises CommandError if it fails, and any other exception is our bug. returns:
    the type of the result (schema.py). then: is called after the reply to a successful command was
    sent.
    """

    handler: Handler[S]
    parameters: tuple[Parameter, ...] = ()
    returns: str = EMPTY
    then: Callable[[S], None] | None = None


async def finished(result: Json | Awaitable[Json]) -> Json:
    """What a handler returned, or what that leads to."""
    return await result if isinstance(result, Awaitable) else result


def check_arguments(parameters: tuple[Parameter, ...], arguments: Object) -> dict[str, Any]:
    """Return the arguments if none is unknown, missing or of another type. Raises CommandError."""
    for parameter in parameters:
        if parameter.name in arguments:
            _check(parameter, arguments[parameter.name])
        elif not parameter.optional:
            raise CommandError(f"Parameter '{parameter.name}' is missing")
    known = {parameter.name for parameter in parameters}
    for name in arguments:
        if name not in known:
            raise CommandError(f"Parameter '{name}' is unexpected")
    return dict(arguments)


def _check(parameter: Parameter, value: Json) -> None:
    name = parameter.name
    if not parameter.values:
        check_type(name, parameter.type, value)
    elif check_type(name, "str", value) not in parameter.values:
        raise CommandError(f"Parameter '{name}' does not accept value '{value}'")


def _is_int64(value: Json) -> bool:
    return type(value) is int and -(1 << 63) <= value < 1 << 63


_TYPES: Final[Mapping[str, tuple[str, Callable[[Json], bool]]]] = {
    "int": ("integer", _is_int64),
    "bool": ("boolean", lambda value: isinstance(value, bool)),
    "str": ("string", lambda value: isinstance(value, str)),
    "[str]": ("array", lambda value: isinstance(value, list)),
    "any": ("any", lambda value: True),
}
"""Names in errors, and checks; elements of an array are checked by its handler."""


def check_type(name: str, type_: str, value: Json) -> Any:
    """Return value if it is of this type (see Parameter). Raises CommandError."""
    expected, is_valid = _TYPES[type_]
    if not is_valid(value):
        raise CommandError(f"Invalid parameter type for '{name}', expected: {expected}")
    return value

"""The kinds of values that settings have: how each kind is read, written and described."""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from protocol.qmp import Json
from vhost_balloon.sizes import meant, parse_rate, parse_size

MAX_STATS_INTERVAL: Final = 86400.0
MAX_BYTES: Final = (1 << 63) - 1
"""The largest of QMP's integers."""


def _same(value: Json) -> Json:
    return value


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value.

    noun: completes "expects ..." and "is not ...". qmp: the type in query-qmp-schema. read: takes
    a value of JSON or TOML; raises ValueError. write: returns the JSON value. parse: makes an
    option's text a value for read. metavar: stands for the value in --help; "" if there is none.
    hint: what may be meant by a text that is refused, to follow the noun; "" if that is not known.
    """

    noun: str
    qmp: str
    read: Callable[[Any], Any]
    write: Callable[[Any], Json] = _same
    parse: Callable[[str], object] = str
    metavar: str = ""
    hint: Callable[[str], str] = lambda text: ""

    def read_option(self, text: str) -> Any:
        """Raises ValueError."""
        try:
            return self.read(self.parse(text))
        except ValueError:
            raise ValueError(f"{text!r} is not {self.noun}{self.hint(text)}") from None


def is_file_name_text(text: str) -> bool:
    """Whether system calls accept this text as a path or a name."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def choice(kind: type[enum.Enum], qmp: str) -> Kind:
    """One of the values of an enumeration of strings."""
    values = [member.value for member in kind]
    return Kind(
        f"one of {', '.join(values)}",
        qmp,
        kind,
        write=lambda member: member.value,
        metavar="|".join(values),
    )


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    if not 0 <= value <= MAX_STATS_INTERVAL:
        raise ValueError
    return float(value)


def _bytes(parse: Callable[[str], int]) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, str):
            value = parse(value)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_BYTES:
            raise ValueError
        return value

    return read


def _permissions(value: object) -> int:
    if not isinstance(value, str) or not re.fullmatch("0{0,3}[0-7]{1,3}", value):
        raise ValueError
    return int(value, 8)


def _group(value: object) -> str:
    if not isinstance(value, str) or not is_file_name_text(value):
        raise ValueError
    return value


BOOLEAN: Final = Kind("true or false", "bool", _boolean)
SECONDS: Final = Kind(
    f"a number of seconds from 0 to {MAX_STATS_INTERVAL:.0f}",
    "number",
    _seconds,
    parse=float,
    metavar="SECONDS",
)
SIZE: Final = Kind(
    "a size above 0, such as 512M",
    "int",
    _bytes(parse_size),
    metavar="SIZE",
    hint=meant,
)
RATE: Final = Kind(
    "a rate above 0 in bytes a second, such as 512M/s",
    "int",
    _bytes(parse_rate),
    metavar="RATE",
    hint=lambda text: meant(text.removesuffix("/s")),
)
PERMISSIONS: Final = Kind(
    "a string of octal digits such as 0660",
    "str",
    _permissions,
    write=lambda mode: f"{mode:04o}",
    metavar="MODE",
)
GROUP: Final = Kind("a group's name or number, as a string", "str", _group, metavar="GROUP")

"""What a daemon tells of its VM, checked.

It may be a server of another kind, or in the hands of its guest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar

from vhost_balloon.ctl.client import Client
from vhost_balloon.ctl.errors import CtlError

STAT_UNKNOWN: Final = (1 << 64) - 1
"""What QMP's guest-stats has for a statistic that the guest did not give."""

MAX_WORD: Final = 64
MAX_WORDS: Final = 64
"""Characters of a word that is shown in a table, and words of a list of them."""

MAX_DEPTH: Final = 8
"""How deep an answer may be nested: what can be parsed cannot always be printed."""

T = TypeVar("T")
D = TypeVar("D")


class Vm(NamedTuple):
    """A VM. Sizes in bytes, None where the daemon does not know.

    raw is what query-vms has of it; what only `status` shows is read from there. error: why there
    is no answer, and raw says that.
    """

    id: str
    raw: Mapping[str, Any]
    attached: bool
    state: str
    memory: int
    target: int | None
    pending: bool
    actual: int | None
    resident: int | None
    paused: tuple[str, ...]
    freed: int
    socket_path: str | None
    error: str | None = None


def query_vm(client: Client) -> Vm:
    """The daemon's VM. Raises CtlError."""
    return read_vm(client.execute("query-vms"), client.name)


def read_vm(answer: Any, name: str | None = None) -> Vm:
    """The one VM of an answer to query-vms; its name is the given one, or else the answer's.

    Raises CtlError.
    """
    if not isinstance(answer, list) or len(answer) != 1 or not isinstance(answer[0], dict):
        raise _odd("query-vms")
    found: dict[str, Any] = answer[0]
    if name is None:
        name = field(found, "id", str, None)
    if name is None or not _is_shallow(found, MAX_DEPTH):
        raise _odd("query-vms")
    return Vm(
        id=name,
        raw=found | {"id": name},
        attached=field(found, "attached", bool, False),
        state=_word("state", field(found, "state", str, "unknown")),
        memory=field(found, "guest-memory", int, 0),
        target=field(found, "target", int, None),
        pending=field(found, "pending", bool, False),
        actual=field(found, "actual", int, None),
        resident=field(found, "resident", int, None),
        paused=words(found, "pause-reasons"),
        freed=field(found, "freed-bytes", int, 0),
        socket_path=field(found, "socket-path", str, None),
    )


def without_answer(name: str, error: str) -> Vm:
    """A VM of which nothing is known but why."""
    return read_vm([{"state": "unknown"}], name)._replace(
        raw={"id": name, "error": error}, error=error
    )


def field(members: Mapping[str, Any], name: str, kind: type[T], default: D) -> T | D:
    """A member that has to be of that type where it is there. Raises CtlError."""
    if name not in members:
        return default
    value = members[name]
    if not isinstance(value, kind) or (kind is int and not _is_count(value)):
        raise _odd(name)
    return value


def seconds(members: Mapping[str, Any], name: str) -> float | None:
    """A member that is a time. Raises CtlError."""
    value = members.get(name)
    if value is None or (isinstance(value, int | float) and 0 <= value < 1e12):
        return value
    raise _odd(name)


def sizes(members: Mapping[str, Any], name: str) -> dict[str, int]:
    """A member that maps names to numbers. Raises CtlError."""
    found: dict[str, Any] = field(members, name, dict, {})
    return {key: field(found, key, int, 0) for key in found}


def objects(members: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """A member that is a list of objects. Raises CtlError."""
    found: list[Any] = field(members, name, list, [])
    if not all(isinstance(element, dict) for element in found):
        raise _odd(name)
    return found


def words(members: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A member that is a list of strings. Raises CtlError."""
    found: list[Any] = field(members, name, list, [])
    if len(found) > MAX_WORDS or not all(isinstance(element, str) for element in found):
        raise _odd(name)
    return tuple(_word(name, element) for element in found)


def total(members: Mapping[str, Any], name: str) -> int:
    """A member that is a number, or an object of such members, which are added up. Raises
    CtlError."""
    value = members.get(name, 0)
    if isinstance(value, dict):
        return sum(total(value, key) for key in value)
    return field({name: value}, name, int, 0)


def _word(name: str, text: str) -> str:
    if len(text) > MAX_WORD:
        raise _odd(name)
    return text


def _is_shallow(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    elements = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_shallow(element, depth - 1) for element in elements)


def _is_count(value: Any) -> bool:
    """Whether an int is none of JSON's true and false, and of 64 bits."""
    return not isinstance(value, bool) and 0 <= value <= STAT_UNKNOWN


def _odd(name: str) -> CtlError:
    return CtlError(f"the daemon's answer is not understood ({name}): another version?")

"""Reads and checks the daemons' answers.

The other end may be another kind of server, or a daemon that its guest has compromised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar

from vhost_balloon.ctl.client import Client
from vhost_balloon.ctl.errors import CtlError
from vhost_balloon.printable import encodable

STAT_UNKNOWN: Final = (1 << 64) - 1
"""The value of a statistic that the guest did not send."""

MAX_WORD: Final = 64
MAX_WORDS: Final = 64
"""Limits of a word shown in a table (characters), and of a list of words."""

MAX_HINT: Final = 1000
"""Most characters of a sentence."""

MAX_DEPTH: Final = 8
"""How deep an answer may be nested: Python can parse deeper JSON than it can print."""

T = TypeVar("T")
D = TypeVar("D")


class Vm(NamedTuple):
    """A VM. Sizes are in bytes, None if the daemon does not know them.

    raw: the answer to query-vms, from which `status` reads more, or id and error; error: why there
    is no answer.
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
    """Ask the daemon for its VM. Raises CtlError."""
    return read_vm(client.execute("query-vms"), client.name)


def read_vm(answer: Any, name: str | None = None) -> Vm:
    """Read the one VM in an answer to query-vms. name: overrides the answer's.

    Raises CtlError.
    """
    if not isinstance(answer, list) or len(answer) != 1 or not isinstance(answer[0], dict):
        raise unexpected("query-vms")
    found: dict[str, Any] = answer[0]
    if name is None:
        name = encodable(field(found, "id", str, "")) or None
    if name is None or not is_shallow(found):
        raise unexpected("query-vms")
    return Vm(
        id=name,
        raw=found | {"id": name},
        attached=field(found, "attached", bool, False),
        state=word("state", field(found, "state", str, "unknown")),
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
    """Return a VM that did not answer, and why."""
    return read_vm([{"state": "unknown"}], name)._replace(
        raw={"id": name, "error": error}, error=error
    )


def field(members: Mapping[str, Any], name: str, kind: type[T], default: D) -> T | D:
    """Return a member of that type, or the default if it is absent. Raises CtlError."""
    if name not in members:
        return default
    value = members[name]
    if not isinstance(value, kind) or (kind is int and not _is_count(value)):
        raise unexpected(name)
    return value


def seconds(members: Mapping[str, Any], name: str) -> float | None:
    """Return a member that is a time, None if it is absent. Raises CtlError."""
    value = members.get(name)
    if value is None or (isinstance(value, int | float) and 0 <= value < 1e12):
        return value
    raise unexpected(name)


def sizes(members: Mapping[str, Any], name: str) -> dict[str, int]:
    """Return a member that maps names to numbers. Raises CtlError."""
    found: dict[str, Any] = field(members, name, dict, {})
    return {key: field(found, key, int, 0) for key in found}


def objects(members: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return a member that is a list of objects. Raises CtlError."""
    found: list[Any] = field(members, name, list, [])
    if not all(isinstance(element, dict) for element in found):
        raise unexpected(name)
    return found


def words(members: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return a member that is a list of strings. Raises CtlError."""
    found: list[Any] = field(members, name, list, [])
    if len(found) > MAX_WORDS or not all(isinstance(element, str) for element in found):
        raise unexpected(name)
    return tuple(word(name, element) for element in found)


def hint(vm: Vm) -> str | None:
    """Return why the daemon does not know whether a VM's memory may be discarded, and what to do;
    None if it knows. Raises CtlError."""
    text = field(vm.raw, "pause-hint", str, None)
    if text is not None and len(text) > MAX_HINT:
        raise unexpected("pause-hint")
    return text


def total(members: Mapping[str, Any], name: str) -> int:
    """Return a member that is a number, or the sum of an object's numbers. Raises CtlError."""
    value = members.get(name, 0)
    if isinstance(value, dict):
        return sum(total(value, key) for key in value)
    return field({name: value}, name, int, 0)


def word(name: str, text: str) -> str:
    """Return a string that is shown in a table. Raises CtlError if it is too long."""
    if len(text) > MAX_WORD:
        raise unexpected(name)
    return text


def is_shallow(value: Any, depth: int = MAX_DEPTH) -> bool:
    """Whether a value is nested no deeper than that."""
    if not isinstance(value, dict | list):
        return True
    elements = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(is_shallow(element, depth - 1) for element in elements)


def _is_count(value: Any) -> bool:
    """Whether an int is unsigned, of 64 bits at most, and not a bool."""
    return not isinstance(value, bool) and 0 <= value <= STAT_UNKNOWN


def unexpected(name: str) -> CtlError:
    """Return the error for an answer whose member or command `name` has an unexpected form."""
    return CtlError(f"unexpected answer from the daemon ({name}): another version?")

"""What the daemon tells of a VM, checked: a server of another kind must not confuse this tool."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar

from vhost_balloon.ctl.client import Client
from vhost_balloon.ctl.errors import CtlError

STAT_UNKNOWN: Final = (1 << 64) - 1
"""What QMP's guest-stats has for a statistic that the guest did not give."""

T = TypeVar("T")
D = TypeVar("D")


class Vm(NamedTuple):
    """One element of query-vms. Sizes in bytes, None where the daemon does not know.

    raw is the element as it came; what only `status` shows is read from there.
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


def query_vms(client: Client) -> list[Vm]:
    """All VMs, in the order of the daemon's configuration. Raises CtlError."""
    answer = client.execute("query-vms")
    if not isinstance(answer, list):
        raise _odd("query-vms")
    return [_vm(element) for element in answer]


def query_vm(client: Client, name: str) -> Vm:
    """The VM of that name. Raises CtlError if there is none."""
    return find(query_vms(client), name)


def find(vms: list[Vm], name: str) -> Vm:
    """The VM of that name. Raises CtlError if there is none."""
    for vm in vms:
        if vm.id == name:
            return vm
    known = ", ".join(vm.id for vm in vms)
    raise CtlError(f"there is no VM {name!r}" + (f" (there are: {known})" if known else ""))


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
    if not all(isinstance(element, str) for element in found):
        raise _odd(name)
    return tuple(found)


def _is_count(value: Any) -> bool:
    """Whether an int is none of JSON's true and false, and of 64 bits."""
    return not isinstance(value, bool) and 0 <= value <= STAT_UNKNOWN


def _vm(element: Any) -> Vm:
    if not isinstance(element, dict) or not isinstance(element.get("id"), str):
        raise _odd("query-vms")
    return Vm(
        id=element["id"],
        raw=element,
        attached=field(element, "attached", bool, False),
        state=field(element, "state", str, "unknown"),
        memory=field(element, "guest-memory", int, 0),
        target=field(element, "target", int, None),
        pending=field(element, "pending", bool, False),
        actual=field(element, "actual", int, None),
        resident=field(element, "resident", int, None),
        paused=words(element, "pause-reasons"),
        freed=field(element, "freed-bytes", int, 0),
        socket_path=field(element, "socket-path", str, None),
    )


def _odd(name: str) -> CtlError:
    return CtlError(f"the daemon's answer is not understood ({name}): another version?")

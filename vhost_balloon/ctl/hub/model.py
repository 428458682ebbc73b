"""Reads and checks the hub's answers. Members that are missing are unknown (None)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from vhost_balloon.ctl import model
from vhost_balloon.ctl.errors import CtlError
from vhost_balloon.printable import encodable

OFF: Final = "off"

MAX_TEXT: Final = 4000
MAX_TEXTS: Final = 10_000
"""Most characters of a text that is no word, which is cut there, and most texts of a list."""


class Host(NamedTuple):
    """The host. Sizes are in bytes, age in seconds; some and k are shares of 1."""

    age: float | None
    available: int | None
    total: int | None
    reserve: int | None
    some: float | None
    k: float | None
    short: bool
    plenty: bool
    spare: int | None


class PolicyVm(NamedTuple):
    """A VM. Sizes are in bytes, times in seconds.

    id: "" if the answer gives none. raw: the row as it came. known: its members without those that
    are wrong or say nothing; --explain reads more from them. order: the target that the last tick
    ordered, or would order in a dry run.
    """

    id: str
    raw: Mapping[str, Any]
    known: Mapping[str, Any]
    reason: str
    explanation: str
    target: int | None
    order: int | None
    actual: int | None
    demand: int | None
    peak: int | None
    keep: int | None
    spare: int | None
    resident: int | None
    age: float | None


class Policy(NamedTuple):
    """The answer to query-policy. readable: the host's memory can be read. host: None before the
    first tick."""

    raw: Mapping[str, Any]
    mode: str
    configured: str
    problems: tuple[str, ...]
    explanation: str
    readable: bool
    host: Host | None
    vms: tuple[PolicyVm, ...]


def read_policy(answer: Any) -> Policy:
    """Raises CtlError, but not for a VM's row: its daemon chose some of it, and what is wrong there
    is unknown."""
    if not isinstance(answer, dict) or "mode" not in answer or not model.is_shallow(answer):
        raise model.unexpected("query-policy")
    host = model.field(answer, "host", dict, None)
    mode = _word(answer, "mode")
    return Policy(
        raw=answer,
        mode=mode,
        configured=_word(answer, "configured-mode") or mode,
        problems=texts(answer, "problems"),
        explanation=text(answer, "explanation"),
        readable=model.field(answer, "host-readable", bool, True),
        host=None if host is None else _host(host),
        vms=tuple(map(_vm, model.field(answer, "vms", list, []))),
    )


def _host(members: Mapping[str, Any]) -> Host:
    return Host(
        age=model.seconds(members, "age"),
        available=model.field(members, "available", int, None),
        total=model.field(members, "total", int, None),
        reserve=model.field(members, "reserve", int, None),
        some=model.seconds(members, "some"),
        k=model.seconds(members, "k"),
        short=model.field(members, "short", bool, False),
        plenty=model.field(members, "plenty", bool, False),
        spare=model.field(members, "spare", int, None),
    )


def _vm(row: Any) -> PolicyVm:
    members: Mapping[str, Any] = row if isinstance(row, dict) else {}
    known = _known(members)
    reason, detail = known.get("reason") or "unknown", known.get("detail")
    return PolicyVm(
        id=encodable(known.get("id", "")),
        raw=members,
        known=known,
        reason=f"{reason}: {detail}" if detail else reason,
        explanation=known.get("explanation", ""),
        age=known.get("age"),
        **{name: known.get(name) for name in _SHOWN},
    )


def _known(members: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a VM's members say. One without a front end has no sizes, and one without
    statistics none that are made of them."""
    found = {}
    for name in members.keys() & _READERS.keys():
        with suppress(CtlError):
            found[name] = _READERS[name](members, name)
    unsaid = _SIZES if found.get("size") == 0 else _SAMPLED if found.get("age") is None else ()
    return {name: value for name, value in found.items() if name not in unsaid}


def _word(members: Mapping[str, Any], name: str) -> str:
    return model.word(name, model.field(members, name, str, ""))


def text(members: Mapping[str, Any], name: str) -> str:
    """Return a member that is a text, "" if it is absent. Raises CtlError."""
    return _cut(model.field(members, name, str, ""))


def texts(members: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return a member that is a list of texts. Raises CtlError."""
    found: list[Any] = model.field(members, name, list, [])
    if len(found) > MAX_TEXTS or not all(isinstance(element, str) for element in found):
        raise model.unexpected(name)
    return tuple(map(_cut, found))


def texts_by_name(members: Mapping[str, Any], name: str) -> dict[str, str]:
    """Return a member that maps names to texts; one that is no text is "unknown". Raises
    CtlError."""
    found: dict[str, Any] = model.field(members, name, dict, {})
    return {
        key: _cut(value) if isinstance(value, str) else "unknown" for key, value in found.items()
    }


def _cut(value: str) -> str:
    return value if len(value) <= MAX_TEXT else f"{value[:MAX_TEXT]}~"


def _number(members: Mapping[str, Any], name: str) -> int | None:
    return model.field(members, name, int, None)


def _flag(members: Mapping[str, Any], name: str) -> bool | None:
    return model.field(members, name, bool, None)


_SAMPLED: Final = ("demand", "peak", "keep", "spare")
_SHOWN: Final = ("target", "order", "actual", "resident", *_SAMPLED)
_SIZES: Final = ("size", "floor", "ceiling", "slack", *_SHOWN)
"""Sizes: those made of statistics, those in the table, all."""

_READERS: Final[Mapping[str, Callable[[Mapping[str, Any], str], Any]]] = {
    "id": text,
    "reason": _word,
    "detail": text,
    "explanation": text,
    **dict.fromkeys((*_SIZES, "weight", "reversals"), _number),
    "age": model.seconds,
    "held-for": model.seconds,
    "distress": _flag,
    "decisions": model.sizes,
}
"""A VM's members. Each raises CtlError for a value that the member cannot have."""


def find(policy: Policy, names: list[str]) -> PolicyVm | None:
    """Return the VM with the first of these names that there is."""
    known = {vm.id: vm for vm in policy.vms if vm.id}
    return next((known[name] for name in names if name in known), None)


def answered(answer: Any, command: str) -> dict[str, Any]:
    """Return an answer that must be an object. Raises CtlError."""
    if not isinstance(answer, dict):
        raise model.unexpected(command)
    return answer

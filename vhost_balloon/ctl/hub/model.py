"""Reads and checks the hub's answers. Members that are missing are unknown (None)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from vhost_balloon.ctl import model
from vhost_balloon.printable import encodable

OFF: Final = "off"

MAX_TEXT: Final = 4000
MAX_TEXTS: Final = 10_000
"""Limits of a text that is no word (characters), and of a list of them."""


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
    """A VM. Sizes are in bytes, times in seconds. order: the target that the last tick ordered, or
    would order in a dry run. raw: the members, from which --explain reads more."""

    id: str
    raw: Mapping[str, Any]
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
    """The answer to query-policy. host: None before the first tick."""

    raw: Mapping[str, Any]
    mode: str
    configured: str
    problems: tuple[str, ...]
    explanation: str
    host: Host | None
    vms: tuple[PolicyVm, ...]


def read_policy(answer: Any) -> Policy:
    """Raises CtlError."""
    if not isinstance(answer, dict) or "mode" not in answer or not model.is_shallow(answer):
        raise model.unexpected("query-policy")
    host = model.field(answer, "host", dict, None)
    mode = _word(answer, "mode", "")
    return Policy(
        raw=answer,
        mode=mode,
        configured=_word(answer, "configured-mode", mode),
        problems=texts(answer, "problems"),
        explanation=text(answer, "explanation"),
        host=None if host is None else _host(host),
        vms=tuple(map(_vm, model.objects(answer, "vms"))),
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


def _vm(members: Mapping[str, Any]) -> PolicyVm:
    name = encodable(text(members, "id"))
    if not name:
        raise model.unexpected("id")
    reason, detail = _word(members, "reason", "unknown"), _word(members, "detail", "")
    sizes = {
        name: size(members, name)
        for name in ("target", "order", "actual", "demand", "peak", "keep", "spare", "resident")
    }
    return PolicyVm(
        id=name,
        raw=members,
        reason=f"{reason}: {detail}" if detail else reason,
        explanation=text(members, "explanation"),
        age=model.seconds(members, "age"),
        **sizes,
    )


_SAMPLED: Final = ("demand", "peak", "keep", "spare")


def size(members: Mapping[str, Any], name: str) -> int | None:
    """Return one of a VM's sizes, None if it says nothing: a VM without a front end has none, and
    one without statistics has none that are made of them. Raises CtlError."""
    found = model.field(members, name, int, None)
    is_known = members.get("size") != 0 and ("age" in members or name not in _SAMPLED)
    return found if is_known else None


def _word(members: Mapping[str, Any], name: str, default: str) -> str:
    return model.word(name, model.field(members, name, str, default))


def text(members: Mapping[str, Any], name: str) -> str:
    """Return a member that is a text, "" if it is absent. Raises CtlError."""
    return _bounded(name, model.field(members, name, str, ""))


def texts(members: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Return a member that is a list of texts. Raises CtlError."""
    found: list[Any] = model.field(members, name, list, [])
    if len(found) > MAX_TEXTS:
        raise model.unexpected(name)
    return tuple(_bounded(name, element) for element in found)


def _bounded(name: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise model.unexpected(name)
    return value


def find(policy: Policy, names: list[str]) -> PolicyVm | None:
    """Return the VM with the first of these names that there is."""
    known = {vm.id: vm for vm in policy.vms}
    return next((known[name] for name in names if name in known), None)


def answered(answer: Any, command: str) -> dict[str, Any]:
    """Return an answer that must be an object. Raises CtlError."""
    if not isinstance(answer, dict):
        raise model.unexpected(command)
    return answer

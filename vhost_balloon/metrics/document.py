"""Checks the snapshot of a VM (figures/vm_info.py) before metrics are made from it. Pure.

A document may come from a daemon that was taken over by its guest, so only known types, members
and words are kept. Unknown members and words are ignored: another version may have more of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from vhost_balloon.containment import PLACES
from vhost_balloon.figures.counters import DISCARD_BUCKETS
from vhost_balloon.figures.refusal import PAUSE_REASONS
from vhost_balloon.figures.statistics import VmState
from vhost_balloon.figures.vm_info import PARTS, VM_INFO

Document = Mapping[str, Any]
"""A snapshot: JSON values by the names of query-vms."""

MAX_NUMBER: Final = 1 << 64

_Check = Callable[[Any], Any]
"""Returns the part of a value that is kept. Raises BadDocument."""


class BadDocument(Exception):
    """A snapshot that no proper daemon sends; the text names the member."""


def checked(snapshot: object) -> Document:
    """The known part of a snapshot, in new objects. Raises BadDocument.

    Members may be missing, except "attached" and "state".
    """
    document: Document = _SNAPSHOT(snapshot)
    for name in ("attached", "state"):
        if name not in document:
            raise BadDocument(f"'{name}' is missing")
    return document


def _number(value: Any) -> float:
    # bool is a subclass of int, and NaN is in no range.
    if type(value) not in (int, float) or not 0 <= value < MAX_NUMBER:
        raise BadDocument("is not a number from 0 to 2^64")
    return value  # type: ignore[no-any-return]


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise BadDocument("is neither true nor false")
    return value


def _word(value: Any) -> str:
    if type(value) is not str:
        raise BadDocument("is not a string")
    return value


def _words(known: Iterable[str]) -> _Check:
    words = tuple(known)

    def check(value: Any) -> list[str]:
        if type(value) is not list:
            raise BadDocument("is not an array")
        given = set(map(_word, value))
        return [word for word in words if word in given]

    return check


def _members(known: Mapping[str, _Check]) -> _Check:
    def check(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise BadDocument("is not an object")
        kept = {}
        for name, inner in known.items() if value else ():
            if name in value:
                try:
                    kept[name] = inner(value[name])
                except BadDocument as error:
                    raise BadDocument(f"'{name}' {error}") from None
        return kept

    return check


def _histogram(value: Any) -> dict[str, Any]:
    kept: dict[str, Any] = _HISTOGRAM(value)
    if len(kept) != len(_HISTOGRAM_MEMBERS):
        raise BadDocument("is not a histogram")
    return kept


def _buckets(value: Any) -> list[float]:
    if type(value) is not list or len(value) != len(DISCARD_BUCKETS) + 1:
        raise BadDocument(f"is not an array of {len(DISCARD_BUCKETS) + 1}")
    return [_number(count) for count in value]


def _state(value: Any) -> str:
    """ "" for a state of another version."""
    return _STATES.get(_word(value), "")


_STATES: Final = {state.value: state.value for state in VmState}
_HISTOGRAM_MEMBERS: Final[Mapping[str, _Check]] = {"counts": _buckets, "sum": _number}
_HISTOGRAM: Final = _members(_HISTOGRAM_MEMBERS)

_NOT_SHOWN: Final = {
    "id", "settings", "socket-path", "front-end-pid", "features", "protocol-features", "queues",
    "regions", "pending", "held-for", "balloon", "driver-ready", "pause-hint", "stats-taken",
    "stats-actual",
}  # fmt: skip
"""Members that no metric is made from."""

_SPECIAL: Final[Mapping[str, _Check]] = {
    "state": _state,
    "pause-reasons": _words(PAUSE_REASONS),
    "internal-errors": _members(dict.fromkeys(PLACES, _number)),
    "discard-seconds": _histogram,
}


def _check_of(kind: str) -> _Check:
    """The check of a QMP type (figures/vm_info.py)."""
    if kind in ("int", "number"):
        return _number
    if kind == "bool":
        return _flag
    return _members({name.removeprefix("*"): _check_of(of) for name, of in PARTS[kind].items()})


_SNAPSHOT: Final = _members(
    {
        name: _SPECIAL.get(name) or _check_of(kind)
        for name, kind in ((name.removeprefix("*"), kind) for name, kind in VM_INFO.items())
        if name not in _NOT_SHOWN
    }
)

"""The snapshot of a VM (control_report), checked before its figures are shown.

A document may come from a daemon that was taken over by its guest. What is kept of it has the
types, members and words that are known here, whatever it says; members and words that are not known
are ignored, because another version may have more of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from protocol.virtio_balloon import STAT_NAMES, Queue
from vhost_balloon.containment import PLACES
from vhost_balloon.errors import RingErrorReason
from vhost_balloon.figures.counters import DISCARD_BUCKETS
from vhost_balloon.figures.refusal import EVERY_REASON, PAUSE_REASONS
from vhost_balloon.figures.statistics import VmState

Document = Mapping[str, Any]
"""A snapshot: JSON values by the names of query-vms."""

UNKNOWN_QUEUE: Final = "ring"
"""A ring that broke before it was known what it carries (rings.RingSet)."""
QUEUES: Final = (*(queue.value for queue in Queue), UNKNOWN_QUEUE)

MAX_NUMBER: Final = 1 << 64

_Check = Callable[[Any], Any]
"""Gives what is kept of a value. Raises BadDocument."""


class BadDocument(Exception):
    """A snapshot that no daemon would give; the text names the member."""


def checked(snapshot: object) -> Document:
    """What is known of a snapshot, in new objects. Raises BadDocument.

    A member that is missing is left out, but no snapshot lacks "attached" and "state".
    """
    document: Document = _SNAPSHOT(snapshot)
    for name in ("attached", "state"):
        if name not in document:
            raise BadDocument(f"'{name}' is missing")
    return document


def _number(value: Any) -> float:
    # bool is a subclass of int, and NaN is in no range.
    if type(value) not in (int, float) or not 0 <= value < MAX_NUMBER:
        raise BadDocument("is no number from 0 to 2^64")
    return value  # type: ignore[no-any-return]


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise BadDocument("is neither true nor false")
    return value


def _word(value: Any) -> str:
    if type(value) is not str:
        raise BadDocument("is no string")
    return value


def _words(known: Iterable[str]) -> _Check:
    words = tuple(known)

    def check(value: Any) -> list[str]:
        if type(value) is not list:
            raise BadDocument("is no array")
        given = set(map(_word, value))
        return [word for word in words if word in given]

    return check


def _members(known: Mapping[str, _Check]) -> _Check:
    def check(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise BadDocument("is no object")
        kept = {}
        for name, inner in known.items() if value else ():
            if name in value:
                try:
                    kept[name] = inner(value[name])
                except BadDocument as error:
                    raise BadDocument(f"'{name}' {error}") from None
        return kept

    return check


def _counts(known: Iterable[str]) -> _Check:
    return _members(dict.fromkeys(known, _number))


def _histogram(value: Any) -> dict[str, Any]:
    kept: dict[str, Any] = _HISTOGRAM(value)
    if len(kept) != len(_HISTOGRAM_MEMBERS):
        raise BadDocument("is no histogram")
    return kept


def _buckets(value: Any) -> list[float]:
    if type(value) is not list or len(value) != len(DISCARD_BUCKETS) + 1:
        raise BadDocument(f"is no array of {len(DISCARD_BUCKETS) + 1}")
    return [_number(count) for count in value]


def _state(value: Any) -> str:
    """A state of another version is none that is known."""
    return _STATES.get(_word(value), "")


_STATES: Final = {state.value: state.value for state in VmState}
_HISTOGRAM_MEMBERS: Final[Mapping[str, _Check]] = {"counts": _buckets, "sum": _number}
_HISTOGRAM: Final = _members(_HISTOGRAM_MEMBERS)
_HUGE_PAGES: Final = ("partial", "whole", "waiting-bytes")
_FLAGS: Final = ("attached", "reporting-paused", "queue-map-ambiguous")
_NUMBERS: Final = (
    "guest-memory", "target", "actual", "resident", "report-rate", "stats-interval", "stats-age",
    "reported-bytes", "inflated-bytes", "deflated-bytes", "freed-bytes", "huge-pages-freed",
    "front-end-errors", "front-end-stalls", "config-changes",
)  # fmt: skip

_SNAPSHOT: Final = _members(
    {
        **dict.fromkeys(_FLAGS, _flag),
        **dict.fromkeys(_NUMBERS, _number),
        "state": _state,
        "pause-reasons": _words(PAUSE_REASONS),
        "huge-pages": _counts(_HUGE_PAGES),
        "refused-bytes": _counts(EVERY_REASON),
        "refused-ranges": _counts(EVERY_REASON),
        "requests": _counts(QUEUES),
        "ring-errors": _members(
            dict.fromkeys(QUEUES, _counts(reason.value for reason in RingErrorReason))
        ),
        "internal-errors": _counts(PLACES),
        "discard-seconds": _histogram,
        "stats": _counts(STAT_NAMES.values()),
    }
)

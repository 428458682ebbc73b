"""What of a VM outlives a process, as JSON documents: one function writes, one takes back. Pure.

A document that another version wrote is lifted to this one's by MIGRATIONS. One of a later version
is read as far as it is understood, and such a VM discards nothing (see vhost_balloon.resume).
What is wrong with a document is a StateError, and nothing was taken over then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from protocol.vhost_user_payloads import VringAddress
from protocol.virtio_balloon import NUM_QUEUES, Queue, StatTag
from protocol.virtio_ring import INDEX_MASK, MAX_QUEUE_SIZE
from vhost_balloon.counters import Counters
from vhost_balloon.errors import RingErrorReason, StateError
from vhost_balloon.guest_stats import GuestStats
from vhost_balloon.session import Ring, Session

Document = dict[str, Any]
U64: Final = (1 << 64) - 1

MIGRATIONS: Final[dict[int, Callable[[Document], Document]]] = {}
"""By version: lifts all areas' documents, by area, to the next version."""


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn whatever a wrong document leads to into a StateError."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise StateError(f"{what}: {type(error).__name__}: {error}") from None


def lift(areas: Document, version: int, to: int) -> Document:
    """Bring documents to a later version. Raises StateError where a step is missing."""
    for step in range(version, to):
        if step not in MIGRATIONS:
            raise StateError(f"state of version {version} is not understood any more")
        with reading(f"state of version {step}"):
            areas = MIGRATIONS[step](areas)
    return areas


def number(value: object, low: int = 0, high: int = U64) -> int:
    """A whole number in a range. Raises ValueError."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{value!r:.40} is no number from {low} to {high}")
    return value


def flag(value: object) -> bool:
    """Raises ValueError for anything but true and false."""
    if type(value) is not bool:
        raise ValueError(f"{value!r:.40} is neither true nor false")
    return value


def real(value: Any) -> float:
    """Raises ValueError for anything but a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.40} is no number")
    return float(value)


# The session: features and rings, as the front end set them


def session_document(session: Session) -> Document:
    return {
        "offered": session.offered,
        "features": session.features,
        "protocol-features": session.protocol_features,
        "status": session.status,
        "rings": [_ring_document(ring) for ring in session.rings],
        "returned-bases": list(session.returned_bases.items()),
    }


def _ring_document(ring: Ring) -> Document:
    address = ring.address
    parts = address and [
        address.index,
        address.descriptor,
        address.available,
        address.used,
        address.log,
    ]
    return {
        "size": ring.size,
        "address": parts,
        "base": ring.base,
        "enabled": ring.enabled,
        "started": ring.started,
    }


def restore_session(session: Session, document: Document) -> None:
    """Raises StateError. Regions are not in it: what is mapped decides about them."""
    with reading("session"):
        rings = [_ring(ring) for ring in document["rings"]]
        if len(rings) != NUM_QUEUES:
            raise ValueError(f"{len(rings)} rings")
        bases = {
            number(index, 0, NUM_QUEUES - 1): number(base, 0, INDEX_MASK)
            for index, base in document["returned-bases"]
        }
        offered, features = number(document["offered"]), number(document["features"])
        protocol_features = number(document["protocol-features"])
        status = number(document["status"], 0, 0xFF)
    session.offered, session.status = offered, status
    session.features = session.balloon.features = features
    session.protocol_features = protocol_features
    session.rings, session.returned_bases = rings, bases


def _ring(document: Document) -> Ring:
    parts = document["address"]
    address = None
    if parts is not None:
        index, descriptor, available, used, log = (number(part) for part in parts)
        address = VringAddress(index, 0, descriptor, used, available, log)
    ring = Ring(
        size=number(document["size"], 0, MAX_QUEUE_SIZE),
        address=address,
        base=number(document["base"], 0, INDEX_MASK),
        enabled=flag(document["enabled"]),
        started=flag(document["started"]),
    )
    if ring.started and (address is None or not ring.size):
        raise ValueError("a started ring without size or address")
    return ring


# The balloon and its statistics


def balloon_document(session: Session) -> list[Any]:
    """A list, because it is written at every change of `actual`, with the guest waiting."""
    return [*session.balloon.snapshot(), session.config_unread]


def restore_balloon(session: Session, document: list[Any]) -> None:
    """Raises StateError."""
    with reading("balloon"):
        wish, num_pages, actual, cmd_id, poison, unread = document
        wish, unread = wish if wish is None else number(wish, 1, 1 << 128), flag(unread)
        session.balloon.restore(wish, *map(number, (num_pages, actual, cmd_id, poison)))
    session.config_unread = unread


def stats_document(stats: GuestStats, clock_offset: float) -> Document:
    """clock_offset: what has to be added to updated_at's clock for one that runs on (seconds)."""
    updated = None if stats.updated_at is None else stats.updated_at + clock_offset
    return {
        "values": [[int(tag), value] for tag, value in stats.values.items()],
        "last-update": stats.last_update,
        "updated": updated,
    }


def restore_stats(stats: GuestStats, document: Document, clock_offset: float) -> None:
    """Raises StateError."""
    with reading("statistics"):
        values = {StatTag(number(tag)): number(value) for tag, value in document["values"]}
        last_update, updated = number(document["last-update"]), document["updated"]
        updated_at = None if updated is None else real(updated) - clock_offset
    stats.values, stats.last_update, stats.updated_at = values, last_update, updated_at


# Counters

_PLAIN: Final = (
    "reported_bytes",
    "inflated_bytes",
    "deflated_bytes",
    "freed_bytes",
    "huge_pages_freed",
    "front_end_errors",
    "front_end_stalls",
    "config_changes",
)
_QUEUES: Final = tuple(Queue)


def counters_document(counters: Counters) -> Document:
    histogram = counters.discard_seconds
    return {
        "plain": [getattr(counters, name) for name in _PLAIN],
        "refused": [list(counters.refused_bytes.items()), list(counters.refused_ranges.items())],
        "requests": [counters.requests[queue] for queue in _QUEUES],
        "ring-errors": [
            [queue, reason.value, count] for (queue, reason), count in counters.ring_errors.items()
        ],
        "discard-seconds": [histogram.counts, histogram.sum],
    }


def counters_mark(counters: Counters) -> tuple[float, ...]:
    """What is another one whenever counters changed, at a tenth of a document's cost."""
    return (
        counters.reported_bytes,
        counters.deflated_bytes,
        counters.front_end_errors,
        counters.front_end_stalls,
        counters.config_changes,
        counters.discard_seconds.sum,
        sum(counters.requests.values()),
        sum(counters.refused_ranges.values()),
        len(counters.ring_errors) and sum(counters.ring_errors.values()),
    )


def restore_counters(counters: Counters, document: Document) -> None:
    """Raises StateError."""
    with reading("counters"):
        plain = dict(zip(_PLAIN, map(number, document["plain"]), strict=True))
        refused_bytes, refused_ranges = (
            {str(reason): number(count) for reason, count in pairs} for pairs in document["refused"]
        )
        requests = dict(zip(_QUEUES, map(number, document["requests"]), strict=True))
        errors = {
            (str(queue), RingErrorReason(reason)): number(count)
            for queue, reason, count in document["ring-errors"]
        }
        buckets, seconds = document["discard-seconds"]
        counts, seconds = [number(count) for count in buckets], real(seconds)
    for name, value in plain.items():
        setattr(counters, name, value)
    counters.refused_bytes.update(refused_bytes)
    counters.refused_ranges.update(refused_ranges)
    counters.requests.update({queue: count for queue, count in requests.items() if count})
    counters.ring_errors.update(errors)
    if len(counts) == len(counters.discard_seconds.counts):  # other buckets: start anew
        counters.discard_seconds.counts, counters.discard_seconds.sum = counts, seconds

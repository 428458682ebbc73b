"""How a connection is written on record, and read back: JSON documents with named members. Pure.

restart/migrations.py lifts older versions' documents to these formats. A wrong document raises
StateError, or what checked.reading() turns into one; nothing of it is taken over then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from protocol.vhost_user_payloads import Region, VringAddress
from protocol.virtio_balloon import NUM_QUEUES
from protocol.virtio_ring import INDEX_MASK, MAX_QUEUE_SIZE
from vhost_balloon.balloon.hold import Hold
from vhost_balloon.checked import Document, flag, number, reading, real
from vhost_balloon.errors import RingErrorReason
from vhost_balloon.fds import EventFd
from vhost_balloon.front_end.partial import Partial
from vhost_balloon.memory.region import GuestRegion, MappedRegion
from vhost_balloon.queues.ring import StartedRing
from vhost_balloon.session.session import Ring, Session
from vhost_balloon.store.shelf import shelf_name

MAX_ORDER: Final = 1 << 128
"""Bound for an order on record, in bytes; QMP has none."""
MAX_REASON: Final = 1000
"""Bound for the text that says why a state is unusable: it may quote that state."""

_ADDRESS: Final = ("index", "descriptor", "available", "used", "log")
_REGION: Final = ("guest-address", "size", "user-address", "mmap-offset")


def _members(value: object, names: Iterable[str]) -> Document:
    return {name: getattr(value, name.replace("-", "_")) for name in names}


def _numbers(document: Document, names: Iterable[str]) -> dict[str, int]:
    """The arguments that _members() wrote."""
    return {name.replace("-", "_"): number(document[name]) for name in names}


# The session: features and rings, as the front end set them


def session_document(session: Session) -> Document:
    return {
        "offered": session.offered,
        "features": session.features,
        "protocol-features": session.protocol_features,
        "status": session.status,
        "rings": [_ring_document(ring) for ring in session.rings],
        "returned-bases": [
            {"ring": index, "base": base} for index, base in session.returned_bases.items()
        ],
    }


def _ring_document(ring: Ring) -> Document:
    return {
        "size": ring.size,
        "address": None if ring.address is None else _members(ring.address, _ADDRESS),
        "base": ring.base,
        "enabled": ring.enabled,
        "started": ring.started,
    }


def restore_session(session: Session, document: Document) -> None:
    """Restore all but the regions, which follow from what is mapped. Raises StateError."""
    with reading("session"):
        rings = [_read_ring(ring) for ring in document["rings"]]
        if len(rings) != NUM_QUEUES:
            raise ValueError(f"{len(rings)} rings")
        bases = {
            read_ring_index(entry["ring"]): number(entry["base"], 0, INDEX_MASK)
            for entry in document["returned-bases"]
        }
        offered, features = number(document["offered"]), number(document["features"])
        protocol_features = number(document["protocol-features"])
        status = number(document["status"], 0, 0xFF)
    session.offered, session.status = offered, status
    session.features = session.balloon.features = features
    session.protocol_features = protocol_features
    session.rings, session.returned_bases = rings, bases


def _read_ring(document: Document) -> Ring:
    address = document["address"]
    ring = Ring(
        size=number(document["size"], 0, MAX_QUEUE_SIZE),
        address=None if address is None else VringAddress(flags=0, **_numbers(address, _ADDRESS)),
        base=number(document["base"], 0, INDEX_MASK),
        enabled=flag(document["enabled"]),
        started=flag(document["started"]),
    )
    if ring.started and (address is None or not ring.size):
        raise ValueError("a started ring without size or address")
    return ring


def read_ring_index(value: object) -> int:
    return number(value, 0, NUM_QUEUES - 1)


# The balloon's config space, an order that is not due, and a hold


def balloon_state(session: Session) -> tuple[int | None, int, int, int, int, float, bool]:
    """All that balloon_json() says, for a quick comparison."""
    balloon = session.balloon
    return *balloon.snapshot(), balloon.hold.until, session.config_unread


_BALLOON: Final = (
    '{"order":%s,"num-pages":%d,"actual":%d,"free-page-hint-cmd-id":%d,"poison-val":%d,'
    '"held-until":%s,"config-unread":%s}'
)


def balloon_json(session: Session) -> bytes:
    """The document as JSON. It is written at every change of `actual`, while the guest waits; so
    it is small, and spares the encoder, which would take as long as everything else that a change
    costs."""
    order, num_pages, actual, cmd_id, poison, until, config_unread = balloon_state(session)
    ordered = "null" if order is None else order
    held = "null" if math.isinf(until) else until
    unread = "true" if config_unread else "false"
    return (_BALLOON % (ordered, num_pages, actual, cmd_id, poison, held, unread)).encode()


def restore_balloon(session: Session, document: Document) -> None:
    """Raises StateError.

    held-until is null for a hold without an end. Documents of earlier versions have no such member.
    """
    with reading("balloon"):
        order, unread = document["order"], flag(document["config-unread"])
        until = document.get("held-until", 0.0)
        hold = Hold(math.inf if until is None else real(until))
        names = ("num-pages", "actual", "free-page-hint-cmd-id", "poison-val")
        session.balloon.restore(
            None if order is None else number(order, 1, MAX_ORDER),
            *(number(document[name]) for name in names),
        )
    session.balloon.hold, session.config_unread = hold, unread


# Memory, started rings and their eventfds; descriptors by their names on the shelf


def region_document(held: GuestRegion, *, left_out: bool) -> Document:
    """left_out: it does not count as guest memory."""
    return _members(held.region, _REGION) | {
        "left-out": left_out,
        "fd": shelf_name(held.fd) if isinstance(held, MappedRegion) else None,
        "untouched": not isinstance(held, MappedRegion),
    }


def read_region(document: Document) -> Region:
    return Region(**_numbers(document, _REGION))


@dataclass(frozen=True, slots=True)
class RingPosition:
    """Where a started ring continues.

    lead: how far the next available index is ahead of the used index. base: the next available
    index itself. broken: why the ring was stopped, or None.
    """

    index: int
    lead: int
    base: int
    broken: RingErrorReason | None


def started_ring_document(ring: StartedRing) -> Document:
    queue, broken = ring.virtqueue, ring.broken
    return {
        "index": ring.index,
        "lead": queue.lead,
        "base": queue.base,
        "broken": None if broken is None else broken.reason.value,
        "kick": shelf_name(ring.kick.fd),
    }


def read_position(document: Document) -> RingPosition:
    broken = document["broken"]
    return RingPosition(
        read_ring_index(document["index"]),
        number(document["lead"], 0, INDEX_MASK),
        number(document["base"], 0, INDEX_MASK),
        None if broken is None else RingErrorReason(broken),
    )


def eventfds_document(eventfds: Mapping[int, EventFd]) -> list[Document]:
    return [{"ring": index, "fd": shelf_name(item.fd)} for index, item in eventfds.items()]


def read_eventfds(documents: Iterable[Document]) -> list[tuple[int, str]]:
    """Ring indexes and names of descriptors."""
    return [(read_ring_index(entry["ring"]), str(entry["fd"])) for entry in documents]


# A connection that is answered inertly


def inert_document(reason: str, socket: str) -> Document:
    """All that is known if the state was lost; inert.py adds answers and messages."""
    return {"inert": reason[:MAX_REASON], "socket": socket}


# Messages


def partial_document(partial: Partial | None) -> Document | None:
    """A message that was taken in part."""
    if partial is None:
        return None
    unsure = partial.unsure
    return {
        "data": partial.data.hex(),
        "fds": [shelf_name(fd) for fd in partial.fds],
        "skipped": partial.skipped,
        "fds-lost": partial.fds_lost,
        "unsure": None if unsure is None else {"size": unsure[0], "checksum": unsure[1]},
    }


def read_partial(document: Document) -> Partial:
    """The message without its descriptors, which document["fds"] names."""
    unsure = document["unsure"]
    return Partial(
        bytearray.fromhex(document["data"]),
        [],
        number(document["skipped"]),
        flag(document["fds-lost"]),
        None if unsure is None else (number(unsure["size"]), number(unsure["checksum"])),
    )


def read_silent(document: Document, sequence: int) -> bool:
    """Whether the front end has sent no whole message yet; sequence: the journal's newest request,
    which is newer than the document if one came since.

    Documents of earlier versions have no such member, and their front ends count as heard.
    """
    silent = flag(document.get("silent", False))
    return silent and read_applied(document["applied"])[0] == sequence


def applied_document(sequence: int, reply: bytes | None = None) -> Document:
    """The last request whose changes the other members contain, and its reply."""
    return {"sequence": sequence, "reply": None if reply is None else reply.hex()}


def read_applied(document: Document) -> tuple[int, bytes | None]:
    reply = document["reply"]
    return number(document["sequence"]), None if reply is None else bytes.fromhex(reply)

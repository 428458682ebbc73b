"""What of a VM outlives a process, as JSON documents: one function writes, one takes back. Pure.

A document that another version wrote is lifted to this one's by MIGRATIONS. One of a later version
is read as far as it is understood, and such a VM discards nothing (see vhost_balloon.restart.reattach).
What is wrong with a document is a StateError, and nothing was taken over then.
"""

from __future__ import annotations

from typing import Any

from protocol.vhost_user_payloads import VringAddress
from protocol.virtio_balloon import NUM_QUEUES
from protocol.virtio_ring import INDEX_MASK, MAX_QUEUE_SIZE
from vhost_balloon.checked import Document, flag, number, reading
from vhost_balloon.front_end.partial import Partial
from vhost_balloon.memory.region import MappedRegion
from vhost_balloon.queues.ring import StartedRing
from vhost_balloon.session.session import Ring, Session
from vhost_balloon.store.shelf import shelf_name

"""By version: lifts all areas' documents, by area, to the next version."""


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


# Counters


def _numbers(mapped: MappedRegion) -> list[int]:
    region = mapped.region
    return [region.guest_address, region.size, region.user_address, region.mmap_offset]


def _position(ring: StartedRing) -> list[Any]:
    """Index, where it goes on, and what broke it."""
    queue, broken = ring.virtqueue, ring.broken
    return [ring.index, queue.lead, queue.base, None if broken is None else broken.reason.value]


def partial_document(partial: Partial | None) -> Document | None:
    """A message that was taken in part; resume.left_partial() reads it."""
    if partial is None:
        return None
    return {
        "data": partial.data.hex(),
        "fds": [shelf_name(fd) for fd in partial.fds],
        "skipped": partial.skipped,
        "fds-lost": partial.fds_lost,
        "unsure": partial.unsure,
    }

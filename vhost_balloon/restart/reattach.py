"""Reads what a process before this one left of a connection, and makes it live again.

Everything is read, adopted, mapped and bound before anything is said to the front end or written
to its memory: either all of it can be used, or a StateError says why not and the connection is
served inertly (vhost_balloon.front_end.inert).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from protocol.vhost_user import HEADER_SIZE
from protocol.vhost_user_payloads import Region
from protocol.virtio_ring import INDEX_MASK
from vhost_balloon.balloon.device import Balloon
from vhost_balloon.balloon.guest_stats import GuestStats, restore_stats
from vhost_balloon.checked import Document, flag, number, reading
from vhost_balloon.errors import FrontEndError, RingErrorReason, StateError
from vhost_balloon.fds import SHORTAGE, EventFd, Kick, OwnedFd
from vhost_balloon.front_end import documents as state
from vhost_balloon.front_end.channel import BackendChannel
from vhost_balloon.front_end.conversation import Pending
from vhost_balloon.front_end.partial import Partial, parse_header
from vhost_balloon.front_end.parts import Left, LeftRing
from vhost_balloon.front_end.transport import Transport
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.memory.region import MappedRegion, check_disjoint
from vhost_balloon.queues.ring import bind, stand_in
from vhost_balloon.session.effects import RingSetup
from vhost_balloon.session.message import Message
from vhost_balloon.session.session import Session
from vhost_balloon.store.journal import Journal, Phase
from vhost_balloon.store.reply_pipe import ReplyPipe
from vhost_balloon.store.shelf import Shelf


def read_connection(
    areas: Document,
    socket: OwnedFd,
    journal: Journal,
    shelf: Shelf,
    *,
    pipe: ReplyPipe | None,
    outlives: bool,
) -> Left:
    """Make ready what areas say of the connection over socket, which is taken over.

    outlives: whether this connection is kept for the next process as well, in journal.
    Raises StateError; the socket is left to the caller then, and everything else is closed. A mere
    shortage of descriptors or memory is an OSError.
    """
    with ExitStack() as undo:
        try:
            with reading("connection"):
                left = _read(areas, journal, shelf, undo)
        except FrontEndError as error:
            raise StateError(str(error)) from None
        except OSError as error:
            if error.errno in SHORTAGE:
                raise
            raise StateError(str(error)) from None
        undo.pop_all()
    left.transport = Transport(
        socket, shelf, journal if outlives else None, pipe, partial=left.partial
    )
    left.transport.make_sure()
    return left


def _read(areas: Document, journal: Journal, shelf: Shelf, undo: ExitStack) -> Left:
    document = areas["connection"]

    def adopt(name: object) -> OwnedFd:
        fd = shelf.adopt(str(name))
        undo.callback(fd.close)
        return fd

    session = _checked_session(areas)
    left = Left(
        peer_connected=flag(document["peer-connected"]),
        documents=areas,
        foreign=flag(document["foreign"]),
        partial=left_partial(document, journal, shelf),
    )
    if left.partial is not None:
        undo.callback(left.partial.close)
    for guest, size, user, offset, name in document["regions"]:
        region = Region(number(guest), number(size), number(user), number(offset))
        check_disjoint((mapped.region for mapped in left.memory.regions), region)
        mapped = MappedRegion(region, adopt(name))
        undo.callback(mapped.unmap)
        left.memory.add(mapped)
    if document["channel"] is not None:
        left.channel = BackendChannel(adopt(document["channel"]))
    for eventfds, key in ((left.calls, "calls"), (left.errs, "errs")):
        for index, name in document[key]:
            eventfds[number(index, 0, len(session.rings) - 1)] = EventFd(adopt(name))
    for index, lead, base, broken, name in document["rings"]:
        ring = session.rings[number(index, 0, len(session.rings) - 1)]
        left.rings.append(_ring(ring, left.memory, lead, base, broken, index, adopt(name)))
        undo.callback(left.rings[-1].bound.virtqueue.release)
    if {ring.index for ring in left.rings} != set(session.started):
        raise StateError("other rings than those that were started")
    left.pending = read_pending(journal, document["applied"], shelf)
    return left


def _checked_session(areas: Document) -> Session:
    """A session that nobody uses, to see that the documents can be taken over."""
    session = Session(Balloon(), 0)
    state.restore_session(session, areas["connection"]["session"])
    state.restore_balloon(session, areas["balloon"])
    restore_stats(GuestStats(), areas["stats"], 0.0)
    return session


def left_partial(document: Document, journal: Journal, shelf: Shelf) -> Partial | None:
    """The message that a connection's document has a part of, None if it is whole by now.

    Raises what a wrong document leads to.
    """
    partial = document["partial"]
    if partial is None or journal.sequence != document["applied"][0]:
        return None  # what the journal has is newer
    unsure = partial["unsure"]
    found = Partial(
        bytearray.fromhex(partial["data"]),
        [],
        number(partial["skipped"]),
        flag(partial["fds-lost"]),
        None if unsure is None else (number(unsure[0]), number(unsure[1])),
    )
    _adopt_all(shelf, partial["fds"], found)
    return found


def read_pending(journal: Journal, applied: list[Any], shelf: Shelf) -> Pending | None:
    """The newest request in the journal, None if it was answered.

    applied: of the connection's document, which may be written
    again before the reply has left: what it says of it goes to the journal.

    Raises StateError, and what a wrong document leads to.
    """
    entry = journal.latest()
    if entry is None or entry.phase is Phase.SENT:
        return None
    sequence, text = applied
    if entry.phase < Phase.DONE and sequence == entry.sequence:
        journal.done(None if text is None else bytes.fromhex(text))
        entry = journal.latest()
        assert entry is not None
    try:
        request, flags, _ = parse_header(entry.request)
    except FrontEndError as error:
        raise StateError(f"journal: {error}") from None
    message = Message(request, flags, entry.request[HEADER_SIZE:])
    _adopt_all(shelf, entry.names, message)
    return Pending(entry, message)


def _adopt_all(shelf: Shelf, names: Iterable[object], message: Partial | Message) -> None:
    """Go on with the descriptors of a message, as far as they are there and not used up: it
    does not need others."""
    for name in names:
        try:
            message.fds.append(shelf.adopt(str(name)))
        except StateError:
            message.fds_lost = True


def _ring(
    ring: Any,
    memory: GuestMemory,
    lead: int,
    base: int,
    broken: str | None,
    index: int,
    fd: OwnedFd,
) -> LeftRing:
    setup = RingSetup(ring.size, ring.address, ring.base)
    if broken is not None:
        RingErrorReason(broken)
        bound = stand_in(setup, number(base, 0, INDEX_MASK))
        return LeftRing(index, setup, bound, Kick(fd), broken)
    bound = bind(setup, 0, memory)
    bound.virtqueue.recover(number(lead, 0, INDEX_MASK))
    return LeftRing(index, setup, bound, Kick(fd), None)

"""Rebuilds a connection that the previous process left, from its documents and the shelf.

All parts are read, adopted, mapped and bound before anything is said to the front end or written to
its memory. Either all of them can be used, or a StateError gives the reason and the connection is
served inertly (front_end/inert.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Final

from protocol.vhost_user import HEADER_SIZE
from protocol.vhost_user_payloads import Region
from vhost_balloon.balloon.device import Balloon
from vhost_balloon.balloon.guest_stats import restore_stats
from vhost_balloon.checked import U64, Document, flag, number, reading
from vhost_balloon.errors import FrontEndError, StateError
from vhost_balloon.fds import SHORTAGE, EventFd, Kick, OwnedFd
from vhost_balloon.front_end import documents
from vhost_balloon.front_end.channel import BackendChannel
from vhost_balloon.front_end.conversation import Pending
from vhost_balloon.front_end.partial import Partial, parse_header
from vhost_balloon.front_end.parts import LeftConnection, LeftRing
from vhost_balloon.front_end.transport import Transport
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.memory.region import GuestRegion, UntouchedRegion, accept, check_disjoint
from vhost_balloon.queues.ring import bind, stand_in
from vhost_balloon.session.effects import RingSetup
from vhost_balloon.session.message import Message
from vhost_balloon.session.session import Ring, Session
from vhost_balloon.store.journal import Journal, Phase
from vhost_balloon.store.reply_pipe import ReplyPipe
from vhost_balloon.store.shelf import Shelf

MAX_TOTAL: Final = 2 * U64
"""Bound for what a guest has, in bytes: its own figure and its balloon."""


def read_connection(
    areas: Document,
    socket: OwnedFd,
    journal: Journal,
    shelf: Shelf,
    *,
    pipe: ReplyPipe | None,
    outlives: bool,
) -> LeftConnection:
    """Rebuild the connection over socket, which is taken over, from the documents of all areas.

    outlives: whether this connection is kept in journal for the next process as well.
    Raises StateError, or OSError for a mere shortage of descriptors or memory; the socket is left
    to the caller then, and everything else is closed.
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
    left.transport.is_new = left.silent
    return left


def _read(areas: Document, journal: Journal, shelf: Shelf, undo: ExitStack) -> LeftConnection:
    document = areas["connection"]

    def adopt(name: object) -> OwnedFd:
        fd = shelf.adopt(str(name))
        undo.callback(fd.close)
        return fd

    session = _read_session(areas)
    left = LeftConnection(
        session,
        peer_connected=flag(document["peer-connected"]),
        foreign=flag(document["foreign"]),
        partial=read_partial(document, journal, shelf),
        silent=documents.read_silent(document, journal.sequence),
    )
    if left.partial is not None:
        undo.callback(left.partial.close)
    for entry in document["regions"]:
        region = documents.read_region(entry)
        check_disjoint(session.regions, region)
        held = _hold(region, entry, adopt)
        undo.callback(held.unmap)
        left.memory.add(held)
        session.regions.append(region)
    session.files = dict(left.memory.files())
    _restore_ram(session, document, areas["stats"]["guest-total"])
    if document["channel"] is not None:
        left.channel = BackendChannel(adopt(document["channel"]))
    for eventfds, key in ((left.calls, "calls"), (left.errs, "errs")):
        for index, name in documents.read_eventfds(document[key]):
            eventfds[index] = EventFd(adopt(name))
    for entry in document["rings"]:
        position = documents.read_position(entry)
        ring = session.rings[position.index]
        left.rings.append(_bind_ring(ring, left.memory, position, adopt(entry["kick"])))
        undo.callback(left.rings[-1].bound.virtqueue.release)
    if {ring.index for ring in left.rings} != set(session.started):
        raise StateError("the record's rings are not those that were started")
    left.pending = read_pending(journal, document["applied"], shelf)
    return left


def _hold(region: Region, entry: Document, adopt: Callable[[object], OwnedFd]) -> GuestRegion:
    if flag(entry["untouched"]):
        return UntouchedRegion(region, "as before a restart")
    return accept(region, adopt(entry["fd"]))


def _restore_ram(session: Session, document: Document, total: object) -> None:
    """What the guest has, as it was judged last, and in total by its last sample."""
    ram, left_out = session.balloon.ram, set()
    for region, entry in zip(session.regions, document["regions"], strict=True):
        if flag(entry["left-out"]):
            left_out.add(region.guest_address)
    session.share_memory()
    ram.left_out, ram.judged = frozenset(left_out), flag(document["judged"])
    ram.total = None if total is None else number(total, 0, MAX_TOTAL)


def _read_session(areas: Document) -> Session:
    """The session with its balloon and statistics, without memory."""
    session = Session(Balloon(), 0)
    documents.restore_session(session, areas["connection"]["session"])
    documents.restore_balloon(session, areas["balloon"])
    restore_stats(session.balloon.stats, areas["stats"])
    return session


def read_partial(document: Document, journal: Journal, shelf: Shelf) -> Partial | None:
    """The message that had arrived in part, or None if the journal has it whole by now.

    Raises the errors that checked.reading() catches.
    """
    partial = document["partial"]
    if partial is None or journal.sequence != documents.read_applied(document["applied"])[0]:
        return None  # the journal is newer
    found = documents.read_partial(partial)
    _adopt_all(shelf, partial["fds"], found)
    return found


def read_pending(journal: Journal, applied: Document, shelf: Shelf) -> Pending | None:
    """The newest request in the journal, or None if it was answered.

    applied: from the connection's document. That may be written again, without the reply, before
    the reply is sent; so the reply is copied to the journal first.

    Raises StateError, and the errors that checked.reading() catches.
    """
    entry = journal.latest()
    if entry is None or entry.phase is Phase.SENT:
        return None
    sequence, reply = documents.read_applied(applied)
    if entry.phase < Phase.DONE and sequence == entry.sequence:
        journal.done(reply)
        entry = journal.latest()
        assert entry is not None
    try:
        request, flags, size = parse_header(entry.request)
    except FrontEndError as error:
        raise StateError(f"journal: {error}") from None
    payload = entry.request[HEADER_SIZE:]
    message = Message(request, flags, payload, oversized=size > len(payload))
    _adopt_all(shelf, entry.names, message)
    return Pending(entry, message)


def _adopt_all(shelf: Shelf, names: Iterable[object], message: Partial | Message) -> None:
    """Give a message its descriptors back. Those already used up are gone, and not needed."""
    for name in names:
        try:
            message.fds.append(shelf.adopt(str(name)))
        except StateError:
            message.fds_lost = True


def _bind_ring(
    ring: Ring, memory: GuestMemory, position: documents.RingPosition, fd: OwnedFd
) -> LeftRing:
    if ring.address is None:
        raise StateError(f"ring {position.index} has no address")
    setup = RingSetup(ring.size, ring.address, ring.base)
    if position.broken is not None:
        bound = stand_in(setup, position.base)
        return LeftRing(position.index, setup, bound, Kick(fd), position.broken.value)
    bound = bind(setup, 0, memory)
    bound.virtqueue.recover(position.lead)
    return LeftRing(position.index, setup, bound, Kick(fd), None)

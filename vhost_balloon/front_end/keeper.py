"""Writes one connection's state to the record, for the next process (restart/reattach.py reads it).

Whatever a request changes is on record before its reply is sent. Three parts change at three rates:
the connection (features, regions, rings), the balloon (at every change of `actual`, while the guest
waits) and the last statistics. Without a store they are written only when the daemon re-executes
itself; until then nothing here costs anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from protocol.vhost_user import Request
from vhost_balloon.balloon.guest_stats import stats_document
from vhost_balloon.checked import Document
from vhost_balloon.front_end import documents
from vhost_balloon.front_end.parts import Parts
from vhost_balloon.store.shelf import shelf_name

if TYPE_CHECKING:
    from vhost_balloon.store.record import Record

_CONNECTION_UNTOUCHED: Final = frozenset(
    {
        Request.GET_FEATURES,
        Request.GET_PROTOCOL_FEATURES,
        Request.GET_QUEUE_NUM,
        Request.GET_MAX_MEM_SLOTS,
        Request.GET_STATUS,
        Request.GET_CONFIG,
        Request.SET_CONFIG,
    }
)
"""Requests that change nothing in the connection's document."""


def forget(record: Record) -> None:
    """Clear the record: the front end has gone and everything is closed."""
    record.journal.sent()  # first: a reply that is left must not be sent to the next front end
    for area in ("connection", "balloon", "stats"):
        record.save(area, None)


class Keeper:
    """record: None without a store."""

    def __init__(self, record: Record | None, parts: Parts) -> None:
        self.record: Final = record
        self.foreign = False
        """A later version left the state: nothing may be discarded."""
        self._parts = parts
        self._busy = False
        self._saved_balloon: object = None
        parts.transport.partial_changed = self.changed
        parts.rings.ring_broke = self.changed

    # One request

    def begin(self) -> None:
        """Start handling a request: its changes are written together by finish()."""
        self._busy = True

    def finish(self, request: int, reply: bytes | None) -> None:
        """Write a handled request's changes and its reply (None if none is due).

        The connection's document comes last, because it says that the request was carried out.
        """
        self._busy = False
        if self.record is None:
            return
        changes_connection = request not in _CONNECTION_UNTOUCHED
        if changes_connection and self._parts.session.balloon.stats.taken is None:
            self.save_stats()  # the request may have ended the driver that gave the last ones
        self.save_balloon()
        if changes_connection:
            self._save_connection(self.record, reply)
        self.record.journal.done(reply)

    def answered(self) -> None:
        """Note that the reply was sent, if one was due."""
        if self.record is not None:
            self.record.journal.sent()

    # Changes

    def attached(self) -> None:
        """Write everything for a new connection; its existence last."""
        if self.record is not None:
            self.save_balloon()
            self.save_stats()
            self._save_connection(self.record)

    def changed(self) -> None:
        """Write a change of the connection that no request caused."""
        if self.record is not None and not self._busy:
            self._save_connection(self.record)

    def save_balloon(self) -> None:
        """Write the balloon, unless it is on record: most requests do not change it, and the guest
        waits."""
        session = self._parts.session
        if self.record is not None and documents.balloon_state(session) != self._saved_balloon:
            self._save_balloon(self.record)

    def save_stats(self) -> None:
        if self.record is not None:
            self._save_stats(self.record)

    def save_all(self, record: Record) -> None:
        """Write everything, for a program that replaces this one. Raises ValueError if it does not
        fit."""
        self._save_connection(record)
        self._save_balloon(record)
        self._save_stats(record)

    def ended(self) -> None:
        if self.record is not None:
            forget(self.record)

    def _save_balloon(self, record: Record) -> None:
        session = self._parts.session
        record.save_json("balloon", documents.balloon_json(session))
        self._saved_balloon = documents.balloon_state(session)

    def _save_stats(self, record: Record) -> None:
        balloon = self._parts.session.balloon
        document = stats_document(balloon.stats)
        record.save("stats", document | {"guest-total": balloon.ram.total})

    def _save_connection(self, record: Record, reply: bytes | None = None) -> None:
        applied = documents.applied_document(record.journal.sequence, reply)
        record.save("connection", self._document(applied))

    def _document(self, applied: Document) -> Document:
        parts, channel, rings = self._parts, self._parts.channel(), self._parts.rings
        started = rings.rings.values()
        return {
            "socket": parts.name,
            "peer-connected": parts.peer_connected,
            "channel": None if channel is None else shelf_name(channel.fd),
            "session": documents.session_document(parts.session),
            "regions": self._regions(),
            "judged": parts.session.balloon.ram.judged,
            "rings": [documents.started_ring_document(ring) for ring in started],
            "calls": documents.eventfds_document(rings.calls),
            "errs": documents.eventfds_document(rings.errs),
            "partial": documents.partial_document(parts.transport.partial),
            "applied": applied,
            "foreign": self.foreign,
            "silent": parts.transport.is_new,
        }

    def _regions(self) -> list[Document]:
        left_out = self._parts.session.balloon.ram.left_out
        return [
            documents.region_document(held, left_out=held.guest_start in left_out)
            for held in self._parts.memory().regions
        ]

"""Keeps one connection's state on the record, for the process after this one.

Whatever a request changes is on the record before its reply leaves. Three parts change at three
paces: the connection (features, regions, rings), the balloon (at every change of `actual`, with
the guest waiting) and the last statistics. Without a store they are written only when the daemon
re-executes itself, and nothing here costs anything before.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import trio

from protocol.vhost_user import Request
from vhost_balloon.balloon.guest_stats import stats_document
from vhost_balloon.checked import Document
from vhost_balloon.front_end import documents as state
from vhost_balloon.front_end.documents import _numbers, _position, partial_document
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
"""Requests that change nothing of what the connection's document holds."""


def clock_offset() -> float:
    """What makes trio's clock, which starts anywhere, one that every process of a boot shares."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - trio.current_time()


class Keeper:
    """Writes; vhost_balloon.restart.reattach reads. record: None without a store."""

    def __init__(self, record: Record | None, parts: Parts) -> None:
        self.record: Final = record
        self.foreign = False
        """The state was left by a later version: nothing is discarded."""
        self._parts = parts
        self._busy = False
        parts.transport.partial_changed = self.changed
        parts.rings.ring_broke = self.changed

    # One request

    def begin(self) -> None:
        """A request is being handled: what changes until finish() is written then, as one."""
        self._busy = True

    def finish(self, request: int, reply: bytes | None) -> None:
        """It was handled, and this is its reply (None if none is due): put all of it on record."""
        self._busy = False
        if self.record is None:
            return
        if request not in _CONNECTION_UNTOUCHED:
            self._save_connection(reply)
        self.save_balloon()
        self.record.journal.done(reply)

    def answered(self) -> None:
        """The reply was sent, where one was due."""
        if self.record is not None:
            self.record.journal.sent()

    # Changes

    def attached(self) -> None:
        """A connection begins: put all of it on record, last that there is one."""
        if self.record is not None:
            self.save_balloon()
            self.save_stats()
            self._save_connection(None)

    def changed(self) -> None:
        """The connection changed without a request."""
        if self.record is not None and not self._busy:
            self._save_connection(None)

    def save_balloon(self) -> None:
        if self.record is not None:
            self.record.save("balloon", state.balloon_document(self._parts.session))

    def save_stats(self) -> None:
        if self.record is not None:
            stats = self._parts.session.balloon.stats
            self.record.save("stats", stats_document(stats, clock_offset()))

    def save_all(self, record: Record) -> None:
        """Write everything, for a program that takes this one's place. Raises ValueError if it
        does not fit."""
        record.save("connection", self._document([record.journal.sequence, None]))
        record.save("balloon", state.balloon_document(self._parts.session))
        stats = self._parts.session.balloon.stats
        record.save("stats", stats_document(stats, clock_offset()))

    def ended(self) -> None:
        """The front end has gone and all is closed: nothing of the connection is left."""
        if self.record is not None:
            for area in ("connection", "balloon", "stats"):
                self.record.save(area, None)
            self.record.journal.sent()

    def _save_connection(self, reply: bytes | None) -> None:
        assert self.record is not None
        sequence = self.record.journal.sequence
        applied = [sequence, None if reply is None else reply.hex()]
        self.record.save("connection", self._document(applied))

    def _document(self, applied: list[Any]) -> Document:
        parts, channel, name = self._parts, self._parts.channel(), shelf_name
        rings = parts.rings
        return {
            "socket": parts.name,
            "peer-connected": parts.peer_connected,
            "channel": None if channel is None else name(channel.fd),
            "session": state.session_document(parts.session),
            "regions": [[*_numbers(mapped), name(mapped.fd)] for mapped in parts.memory().regions],
            "rings": [[*_position(ring), name(ring.kick.fd)] for ring in rings.rings.values()],
            "calls": [[index, name(eventfd.fd)] for index, eventfd in rings.calls.items()],
            "errs": [[index, name(eventfd.fd)] for index, eventfd in rings.errs.items()],
            "partial": partial_document(parts.transport.partial),
            "applied": applied,
            "foreign": self.foreign,
        }

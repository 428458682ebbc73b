"""The VMs that the process before this one left, by their records.

A record is brought to this version first, in a new file, and the old one dropped once the new one
is stored. What cannot be read is left aside: a front end whose record is lost is found by the path
of its socket, and is answered inertly. Nothing here ends the daemon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vhost_balloon.errors import FrontEndError, StateError
from vhost_balloon.journal import Phase
from vhost_balloon.log import logger
from vhost_balloon.record import STATE_VERSION, Record
from vhost_balloon.state import Document, lift, reading
from vhost_balloon.store import RECORD_PREFIX, Scope, Store
from vhost_balloon.vm_spec import VmSpec

AREAS: Final = ("vm", "connection", "balloon", "stats", "counters")


@dataclass(slots=True)
class LeftVm:
    """A VM that was left: its wish, its record (in this version), and its documents by area."""

    spec: VmSpec
    record: Record
    scope: Scope
    areas: Document

    @property
    def attached(self) -> bool:
        return self.areas["connection"] is not None

    @property
    def socket_name(self) -> str | None:
        """What the store knows the front end's socket by."""
        connection = self.areas["connection"]
        return connection.get("socket") if isinstance(connection, dict) else None

    def drop(self) -> None:
        """Forget it."""
        self.record.close()
        self.scope.flush()


async def left_vms(store: Store) -> list[LeftVm]:
    """All VMs whose records can be read, of two records of one VM the newer."""
    found: dict[str, LeftVm] = {}
    for name in store.records():
        try:
            left = await _read(store, name)
        except (StateError, FrontEndError, OSError) as error:
            logger.warning("the record of a VM cannot be used: %s", error)
            continue
        other = found.get(left.spec.id)
        if other is not None:
            older = min(left, other, key=lambda one: one.record.generation)
            left = other if older is left else left
            older.drop()
        found[left.spec.id] = left
    if store.pipe is not None:
        store.pipe.empty()  # what it meant is in the journals now
    return list(found.values())


async def _read(store: Store, name: str) -> LeftVm:
    """Raises StateError, FrontEndError or OSError; the record is dropped then."""
    scope = Scope(store)
    fd = scope.adopt(name)
    try:
        record = Record(fd)
    except BaseException:
        fd.close()
        scope.flush()
        raise
    try:
        if store.pipe is not None:
            store.pipe.settle(record.journal)
        areas = {area: record.load(area) for area in AREAS}
        if record.version != STATE_VERSION:
            record, areas = await _renew(record, areas, scope)
        with reading("vm"):
            spec = VmSpec.from_json(areas["vm"]["spec"])
    except BaseException:
        record.close()
        scope.flush()
        raise
    return LeftVm(spec, record, scope, areas)


async def _renew(old: Record, areas: Document, scope: Scope) -> tuple[Record, Document]:
    """A record of this version with the same content. Raises StateError."""
    if old.version < STATE_VERSION:
        areas = lift(areas, old.version, STATE_VERSION)
    elif areas["connection"] is not None:
        with reading("connection"):
            areas["connection"]["foreign"] = True
    new = Record.create(old.generation + 1)
    with reading("record"):  # what does not fit is a ValueError
        _copy_journal(old, new, areas)
        for area, document in areas.items():
            new.save(area, document)
    new.fd = await scope.keep(new.fd, RECORD_PREFIX)
    logger.info("a VM's record of version %d was read as %d", old.version, STATE_VERSION)
    old.close()
    scope.flush()
    return new, areas


def _copy_journal(old: Record, new: Record, areas: Document) -> None:
    """Take over the request in flight, which has another number in the new journal."""
    entry, connection = old.journal.latest(), areas["connection"]
    applied = 0
    if entry is not None and entry.phase is not Phase.SENT:
        new.journal.begin(entry.request, entry.names)
        if entry.phase >= Phase.TAKEN:
            new.journal.taken()
        if entry.phase >= Phase.DONE:
            new.journal.done(entry.reply)
        if entry.phase >= Phase.SENDING:
            new.journal.sending()
        with reading("connection"):
            if connection is not None and connection["applied"][0] == entry.sequence:
                applied = new.journal.sequence
    if connection is not None:
        with reading("connection"):
            connection["applied"][0] = applied

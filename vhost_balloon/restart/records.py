"""What outlives this process: taken over from the process before it, or made anew, and kept.

A record of another version is brought to this one first, in a new file, and the old one dropped
once the new one is stored. A record that cannot be read is dropped, and its front end is answered
inertly (vhost_balloon.restart.revival). A want of memory or descriptors ends the daemon: the next one may
have them, and the VM waits.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Final

import trio

from vhost_balloon.checked import Document, number, reading
from vhost_balloon.errors import OperatorError, StateError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.log.lines import logger
from vhost_balloon.restart.revival import STATE_LOST, newest_connection
from vhost_balloon.store.descriptors import LOCK, PIPE, RECORD, SHELF, Store, numbered
from vhost_balloon.store.journal import Phase
from vhost_balloon.store.process_lock import ProcessLock
from vhost_balloon.store.record import STATE_VERSION, Record
from vhost_balloon.store.reply_pipe import ReplyPipe, make_pipe
from vhost_balloon.store.shelf import ENDS, Shelf
from vhost_balloon.vm.settings import VmSettings, settings_from_json
from vhost_balloon.vm.vm import Vm

AREAS: Final = ("vm", "connection", "balloon", "stats", "counters", "shelf", "arguments")

LOCK_PAUSE: Final = 0.25
"""Seconds between two checks whether a process that cannot be killed has ended."""
SHORTAGE_PAUSE: Final = 1.0
"""Seconds between two checks whether there are enough descriptors."""


@dataclass(slots=True)
class Left:
    """A record that was left, as it is, and its documents by area, in this version."""

    name: str
    record: Record
    areas: Document


def left_options(
    stored: Iterable[tuple[str, OwnedFd]],
) -> tuple[list[str], VmSettings] | None:
    """The command line of the process before this one, and the settings that it came to; None if
    they are not known.

    Whoever edits the options of a service that has a VM may make a mistake. The guest waits, so
    this process goes on with those of the one before.
    """
    found = dict(stored)
    for generation in reversed(numbered(RECORD, found)):
        try:
            record = Record(OwnedFd(os.dup(found[f"{RECORD}{generation}"].fileno())))
            with closing(record), reading("options"):
                words, settings = record.load("arguments"), record.load("vm")["settings"]
                return [str(word) for word in words], settings_from_json(settings, VmSettings())
        except (StateError, OSError):
            continue
    return None


async def find_record(store: Store) -> Left | None:
    """The newest record that was left and can be read."""
    found: Left | None = None
    for generation in reversed(numbered(RECORD, store.left(RECORD))):
        name = f"{RECORD}{generation}"
        if found is not None:
            await store.remove(name)
            continue
        fd = store.take(name)
        assert fd is not None
        try:
            found = _read(name, fd)
        except (StateError, OSError) as error:
            logger.warning("a record of the VM cannot be used: %s", error)
            fd.close()
            await store.remove(name)
    return found


def _read(name: str, fd: OwnedFd) -> Left:
    """Raises StateError or OSError."""
    record = Record(fd)
    try:
        return Left(name, record, _areas(record))
    except BaseException:
        record.close()
        raise


def _areas(record: Record) -> Document:
    """Raises StateError."""
    areas = {area: record.load(area) for area in AREAS}
    if record.version < STATE_VERSION:
        return lift(areas, record.version, STATE_VERSION)
    if record.version > STATE_VERSION and areas["connection"] is not None:
        with reading("connection"):
            areas["connection"]["foreign"] = True
    return areas


def restore_vm(vm: Vm, areas: Document) -> None:
    """Go on with a VM's counters and orders, each as far as it is understood."""
    _restore_counters(vm, areas)
    _restore(
        vm, areas["vm"], vm.restore_orders, "its pause and statistics interval are as configured"
    )


def _restore_counters(vm: Vm, areas: Document) -> None:
    _restore(vm, areas["counters"], vm.restore_counters, "its counters start anew")


def _restore(
    vm: Vm, document: Document | None, restore: Callable[[Document], None], otherwise: str
) -> None:
    if document is None:
        return  # whoever made the record died before it was filled
    try:
        restore(document)
    except StateError as error:
        vm.log.warning(f"{otherwise}: {error}")


async def keep_lock(store: Store) -> ProcessLock | None:
    """The lock that all processes of this VM share, None where no other process can come. Raises
    OperatorError."""
    if not store.active:
        return None
    left = store.take(LOCK)
    if left is not None:
        return ProcessLock(left)
    with _shortage():
        lock = ProcessLock.create()
    await store.keep(LOCK, lock.fd)
    return lock


async def wait_for_lock(vm: Vm, lock: ProcessLock, left: Left | None) -> Left | None:
    """Wait until the process that has the VM, and cannot be killed, has ended; what it left."""
    vm.log.warning(
        "a process before this one has the VM and cannot be killed: the VM is served once that has "
        "ended"
    )
    while not lock.take():
        await trio.sleep(LOCK_PAUSE)
    vm.log.info("the process before this one has ended")
    vm.is_stuck = False
    vm.status_changed.set()
    if left is None:
        return None
    try:  # it may have gone on meanwhile
        left.areas = _areas(left.record)
    except StateError as error:
        logger.warning("a record of the VM cannot be used: %s", error)
        left.record.close()
        await vm.store.remove(left.name)
        return None
    _restore_counters(vm, left.areas)
    return left


async def take_over(vm: Vm, left: Left | None, arguments: Iterable[str]) -> None:
    """Give the VM its record, shelf and reply pipe, and have them outlive this process.

    Only with the lock. Raises OperatorError if the system has not got them.
    """
    store = vm.store
    with _shortage():
        pipe = await _pipe(store)
        if pipe is not None and left is not None:
            pipe.settle(left.record.journal)
        vm.record = await _record(store, left)
        vm.shelf = await _shelf(vm, left)
    if pipe is not None:
        pipe.empty()  # what it meant is in the journal now
    vm.pipe = pipe
    record, shelf = vm.record, vm.shelf
    shelf.switched = lambda: record.save("shelf", shelf.in_use)
    try:
        record.save("arguments", list(arguments))
        vm.save()
    except ValueError as error:
        vm.log.warning(f"not all of it would survive a restart: {error}")


async def _pipe(store: Store) -> ReplyPipe | None:
    if not store.active:
        return None
    left = store.take(PIPE)
    if left is not None:
        return ReplyPipe(left)
    pipe = ReplyPipe(make_pipe())
    await store.keep(PIPE, pipe.fd)
    return pipe


async def _record(store: Store, left: Left | None) -> Record:
    if left is not None and left.record.version == STATE_VERSION:
        return left.record
    record = Record.create(store.new_number(RECORD))
    lost = None
    if left is None:
        lost = _lost(newest_connection(store))
    else:
        try:
            with reading("record"):  # what does not fit is a ValueError
                _copy_journal(left.record, record, left.areas)
                for area, document in left.areas.items():
                    record.save(area, document)
        except StateError as error:
            logger.warning("the record of the VM cannot be used: %s", error)
            record.close()
            record = Record.create(record.generation)
            if left.areas["connection"] is not None:
                lost = left.areas["connection"] = _lost(newest_connection(store))
    if lost is not None:
        record.save("connection", lost)  # before the next process can find it without
    await store.keep(f"{RECORD}{record.generation}", record.fd)
    if left is not None:
        logger.info("a record of version %d was read as %d", left.record.version, STATE_VERSION)
        left.record.close()
        await store.remove(left.name)
    return record


def _lost(socket: str | None) -> Document | None:
    """What is left to know of a connection, if there is one: that it is to be answered inertly."""
    return None if socket is None else {"inert": STATE_LOST, "socket": socket}


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


async def _shelf(vm: Vm, left: Left | None) -> Shelf:
    """Raises OSError."""
    store = vm.store
    newest = max(numbered(SHELF, store.left(SHELF)), default=0)
    names = _end_names(newest)
    found = [store.take(name) for name in names]
    ends = [fd for fd in found if fd is not None]
    if left is not None and len(ends) == len(names):
        in_use = 0
        try:
            with reading("shelf"):
                in_use = number(left.areas["shelf"] or 0, 0, 1)
            shelf = Shelf(ends, in_use)
        except (StateError, OSError) as error:
            vm.log.warning(f"the shelf cannot be used: {error}")
        else:
            if await _load(vm, shelf):
                return shelf
            shelf.close()
    for name in names:
        await store.remove(name)
    shelf = Shelf.create()
    for name, end in zip(_end_names(store.new_number(SHELF)), shelf.ends, strict=True):
        await store.keep(name, end)
    return shelf


def _end_names(number: int) -> list[str]:
    return [f"{SHELF}{number}-{end}" for end in ENDS]


async def _load(vm: Vm, shelf: Shelf) -> bool:
    """Look at what is on the shelf, as soon as there are descriptors for it: the VM waits, and
    without them it would lose its device. False if its front end has gone meanwhile."""
    said = False
    while True:
        try:
            shelf.load()
            return True
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            if newest_connection(vm.store) is None:
                return False
            if not said:
                vm.log.warning(f"the VM has to wait: {error.strerror}: raise LimitNOFILE=")
            said = True
        await trio.sleep(SHORTAGE_PAUSE)


@contextmanager
def _shortage() -> Iterator[None]:
    """What the system has not got is the operator's to mend."""
    try:
        yield
    except OSError as error:
        raise OperatorError(f"the system has nothing left: {error.strerror}") from None


MIGRATIONS: Final[dict[int, Callable[[Document], Document]]] = {}


def lift(areas: Document, version: int, to: int) -> Document:
    """Bring documents to a later version. Raises StateError where a step is missing."""
    for step in range(version, to):
        if step not in MIGRATIONS:
            raise StateError(f"state of version {version} is not understood any more")
        with reading(f"state of version {step}"):
            areas = MIGRATIONS[step](areas)
    return areas

"""Takes over the lock, record, shelf and reply pipe of the previous process, or creates them.

A record of another version is copied to a new one, and dropped once the new one is stored. A
shortage of memory or descriptors ends the daemon: the next process may have more, and the VM waits.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import trio

from vhost_balloon.checked import Document, number, reading
from vhost_balloon.errors import OperatorError, StateError
from vhost_balloon.front_end.documents import inert_document
from vhost_balloon.log.lines import logger
from vhost_balloon.restart.records import LeftRecord, drop_record, read_areas, restore_counters
from vhost_balloon.restart.revival import STATE_LOST, newest_connection
from vhost_balloon.store.descriptors import LOCK, PIPE, RECORD, SHELF, Store, numbered
from vhost_balloon.store.journal import Phase
from vhost_balloon.store.process_lock import ProcessLock
from vhost_balloon.store.record import STATE_VERSION, Record
from vhost_balloon.store.reply_pipe import ReplyPipe, make_pipe
from vhost_balloon.store.shelf import ENDS, Shelf
from vhost_balloon.vm.vm import Vm

LOCK_PAUSE: Final = 0.25
"""Seconds between two checks whether a process that cannot be killed has ended."""
SHORTAGE_PAUSE: Final = 1.0
"""Seconds between two checks whether there are enough descriptors."""


async def keep_lock(store: Store) -> ProcessLock | None:
    """The lock that all processes of this VM share; None where there can be only one process.

    Raises OperatorError.
    """
    if not store.active:
        return None
    left = store.take(LOCK)
    if left is not None:
        return ProcessLock(left)
    with _shortage():
        lock = ProcessLock.create()
    await store.keep(LOCK, lock.fd)
    return lock


async def wait_for_lock(vm: Vm, lock: ProcessLock, left: LeftRecord | None) -> LeftRecord | None:
    """Wait until the process that still has the VM, and cannot be killed, has ended; return what
    it left."""
    vm.log.warning(
        "the previous process still has the VM and cannot be killed: the VM is served once that "
        "process has ended"
    )
    while not lock.take():  # noqa: ASYNC110 - the kernel has no event for it
        await trio.sleep(LOCK_PAUSE)
    vm.log.info("the previous process has ended")
    vm.waits_for_lock = False
    vm.status_changed.set()
    if left is None:
        return None
    try:  # the previous process may have changed it meanwhile
        left.areas = read_areas(left.record)
    except StateError as error:
        left.record.close()
        await drop_record(vm.store, left.name, error)
        return None
    restore_counters(vm, left.areas)
    return left


async def take_over(vm: Vm, left: LeftRecord | None, arguments: Iterable[str]) -> None:
    """Give the VM its record, shelf and reply pipe, and store them for the next process.

    The caller holds the lock. Raises OperatorError if the system is short of memory or descriptors.
    """
    store = vm.store
    with _shortage():
        pipe = await _pipe(store)
        if pipe is not None and left is not None:
            pipe.settle(left.record.journal)
        vm.record = await _record(store, left)
        vm.shelf = await _shelf(vm, left)
    if pipe is not None:
        pipe.empty()  # the journal has noted what it held
    vm.pipe = pipe
    record, shelf = vm.record, vm.shelf
    shelf.switched = lambda: record.save("shelf", shelf.in_use)
    try:
        record.save("arguments", list(arguments))
        vm.save()
    except ValueError as error:
        vm.log.warning(f"some of the VM's state would not survive a restart: {error}")


async def _pipe(store: Store) -> ReplyPipe | None:
    if not store.active:
        return None
    left = store.take(PIPE)
    if left is not None:
        return ReplyPipe(left)
    pipe = ReplyPipe(make_pipe())
    await store.keep(PIPE, pipe.fd)
    return pipe


async def _record(store: Store, left: LeftRecord | None) -> Record:
    """The record that was left, or a new one of this version that has its content."""
    if left is not None and left.record.version == STATE_VERSION:
        return left.record
    record = Record.create(store.new_number(RECORD))
    lost = None
    if left is None:
        lost = _lost(newest_connection(store))
    else:
        try:
            with reading("record"):  # too long for an area is a ValueError
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
        record.save("connection", lost)  # before the next process can find the record
    await store.keep(f"{RECORD}{record.generation}", record.fd)
    if left is not None:
        logger.info("a record of version %d was read as %d", left.record.version, STATE_VERSION)
        left.record.close()
        await store.remove(left.name)
    return record


def _lost(socket: str | None) -> Document | None:
    """The document of a connection of which nothing but its socket is known, if there is one."""
    return None if socket is None else inert_document(STATE_LOST, socket)


def _copy_journal(old: Record, new: Record, areas: Document) -> None:
    """Copy the request in flight, which gets another number in the new journal."""
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
            if connection is not None and connection["applied"]["sequence"] == entry.sequence:
                applied = new.journal.sequence
    if connection is not None:
        with reading("connection"):
            connection["applied"]["sequence"] = applied


async def _shelf(vm: Vm, left: LeftRecord | None) -> Shelf:
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
    """Load the shelf once there are enough descriptors; False if the front end goes meanwhile.

    The VM waits: without its descriptors it would lose its device.
    """
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
    """Turn a failure to allocate into a mistake that the operator can correct."""
    try:
        yield
    except OSError as error:
        raise OperatorError(f"the system is short of resources: {error.strerror}") from None

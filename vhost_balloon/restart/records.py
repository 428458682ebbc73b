"""Finds the record that the previous process left, and restores the VM's orders and counters.

A record of an older version is lifted to this one (restart/migrations.py). One that cannot be read
is dropped, and its front end is answered inertly (restart/revival.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass

from vhost_balloon.checked import Document, reading
from vhost_balloon.errors import StateError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.log.lines import logger
from vhost_balloon.restart.migrations import lift
from vhost_balloon.store.descriptors import RECORD, Store, numbered
from vhost_balloon.store.record import DOCUMENTS, STATE_VERSION, Record
from vhost_balloon.vm.settings import VmSettings, settings_from_json
from vhost_balloon.vm.vm import Vm


@dataclass(slots=True)
class LeftRecord:
    """A record as it was left; areas: its documents, in this version's formats."""

    name: str
    record: Record
    areas: Document


def left_options(
    stored: Iterable[tuple[str, OwnedFd]],
) -> tuple[list[str], VmSettings] | None:
    """The previous process's command line and the settings it led to; None if unknown.

    An operator who edits the options of a running service may make a mistake. The guest waits, so
    this process continues with the previous options.
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


async def find_record(store: Store) -> LeftRecord | None:
    """The newest record that was left and can be read; all others are dropped."""
    found: LeftRecord | None = None
    for generation in reversed(numbered(RECORD, store.left(RECORD))):
        name = f"{RECORD}{generation}"
        if found is not None:
            await store.remove(name)
            continue
        fd = store.take(name)
        assert fd is not None
        try:
            found = _open(name, fd)
        except (StateError, OSError) as error:
            fd.close()
            await drop_record(store, name, error)
    return found


async def drop_record(store: Store, name: str, error: Exception) -> None:
    logger.warning("a record of the VM cannot be used: %s", error)
    await store.remove(name)


def _open(name: str, fd: OwnedFd) -> LeftRecord:
    """Raises StateError or OSError."""
    record = Record(fd)
    try:
        return LeftRecord(name, record, read_areas(record))
    except BaseException:
        record.close()
        raise


def read_areas(record: Record) -> Document:
    """All documents, by area, in this version's formats. Raises StateError."""
    areas = {area: record.load(area) for area in DOCUMENTS}
    if record.version < STATE_VERSION:
        return lift(areas, record.version, STATE_VERSION)
    if record.version > STATE_VERSION and areas["connection"] is not None:
        # Read it as far as it is understood; discard nothing.
        with reading("connection"):
            areas["connection"]["foreign"] = True
    return areas


def restore_vm(vm: Vm, areas: Document) -> None:
    """Restore a VM's counters and orders, each if it can be read."""
    restore_counters(vm, areas)
    _restore(
        vm, areas["vm"], vm.restore_orders, "its pause and statistics interval are as configured"
    )


def restore_counters(vm: Vm, areas: Document) -> None:
    _restore(vm, areas["counters"], vm.restore_counters, "its counters start anew")


def _restore(
    vm: Vm, document: Document | None, restore: Callable[[Document], None], otherwise: str
) -> None:
    if document is None:
        return  # the process that made the record died before it filled it
    try:
        restore(document)
    except StateError as error:
        vm.log.warning(f"{otherwise}: {error}")

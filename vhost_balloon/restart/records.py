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
from vhost_balloon.front_end.peer import has_gone
from vhost_balloon.log.lines import logger
from vhost_balloon.restart.migrations import lift
from vhost_balloon.store.descriptors import CONNECTION, RECORD, Store, numbered
from vhost_balloon.store.record import DOCUMENTS, STATE_VERSION, Record
from vhost_balloon.vm.settings import VmSettings, settings_from_json
from vhost_balloon.vm.vm import Vm


@dataclass(slots=True)
class LeftRecord:
    """A record as it was left; areas: its documents, in this version's formats."""

    name: str
    record: Record
    areas: Document


@dataclass(frozen=True, slots=True)
class LeftOptions:
    """The previous process's command line, and what it led to.

    name, socket_path: None if the record is of a version that did not write them.
    """

    arguments: list[str]
    settings: VmSettings
    name: str | None
    socket_path: str | None


def left_options(stored: Iterable[tuple[str, OwnedFd]]) -> LeftOptions | None:
    """The previous process's options; None if unknown.

    An operator who edits the options of a running service may make a mistake. The guest waits, so
    this process continues with the previous options.
    """
    found = dict(stored)
    for generation in reversed(numbered(RECORD, found)):
        try:
            record = Record(OwnedFd(os.dup(found[f"{RECORD}{generation}"].fileno())))
            with closing(record), reading("options"):
                vm = record.load("vm")
                return LeftOptions(
                    [str(word) for word in record.load("arguments")],
                    settings_from_json(vm["settings"], VmSettings()),
                    _text_or_none(vm.get("name")),
                    _text_or_none(vm.get("socket-path")),
                )
        except (StateError, OSError):
            continue
    return None


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def holds_front_end(stored: Iterable[tuple[str, OwnedFd]]) -> bool:
    """Whether a front end's connection was left that is still open at the other end."""
    return any(name.startswith(CONNECTION) and not has_gone(fd) for name, fd in stored)


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

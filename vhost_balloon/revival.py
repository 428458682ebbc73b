"""Keeps a VM for the process after this one, and serves again what the one before this left.

A front end whose state cannot be used is answered inertly and its connection kept; a lost record
leaves its socket, which knows by which path it came.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Final

from vhost_balloon.backend import FrontEndConnection, run_connection, serve_front_end
from vhost_balloon.errors import FrontEndError, StateError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.inert import InertConnection
from vhost_balloon.inheritance import LeftVm
from vhost_balloon.listeners import bound_path, listening_path
from vhost_balloon.record import Record
from vhost_balloon.resume import Left, Pending, left_partial, read_connection
from vhost_balloon.sockets import Listening
from vhost_balloon.state import reading
from vhost_balloon.store import RECORD_PREFIX, Scope, Store
from vhost_balloon.transport import Transport
from vhost_balloon.vm import Vm

MAX_CRASHES: Final = 3
"""A front end that ended this program so often by a bug is not served any more: the others are."""


async def keep_vm(vm: Vm, listening: Listening | None, left: LeftVm | None) -> None:
    """Have a VM and its listening socket outlive this process, if anything does."""
    if not vm.store.active:
        return
    try:
        if listening is not None:
            await listening.keep()
        if left is None:
            record = Record.create()
            record.fd = await vm.scope.keep(record.fd, RECORD_PREFIX)
            vm.record = record
        else:
            vm.record, vm.scope = left.record, left.scope
        vm.save()
    except (FrontEndError, OSError, ValueError) as error:
        vm.log.warning(f"it would not survive a restart of this program: {error}")


def restore_vm(vm: Vm, left: LeftVm) -> None:
    """Go on with a VM's counters and orders, each as far as it is understood.

    An order that overrode a setting counts until the setting is another one.
    """
    try:
        vm.restore_counters(left.areas["counters"])
    except StateError as error:
        vm.log.warning(f"its counters start anew: {error}")
    try:
        vm.restore_orders(left.areas["vm"])
    except StateError as error:
        vm.log.warning(f"its pause and statistics interval are as configured: {error}")
    if left.spec.settings.stats_interval != vm.settings.stats_interval:
        vm.stats_interval = vm.settings.stats_interval


def lost_front_ends(store: Store, known: Collection[str | None]) -> dict[Path, str]:
    """Front ends whose sockets are not among those that records name (known): the names of theirs,
    by the path that they came by. Those that have gone meanwhile are not looked for."""
    found = {}
    for name, fd in store.left().items():
        path = None if name in known else bound_path(fd)
        if path is not None and listening_path(fd) is None and not _has_gone(fd):
            found[path] = name
    return found


def _has_gone(fd: OwnedFd) -> bool:
    poll = select.poll()
    poll.register(fd.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


async def resume_vm(
    vm: Vm, left: LeftVm | None, lost: str | None, ready: Callable[[], None]
) -> None:
    """Serve the front end that was left, if there is one, until it goes.

    lost: the socket of one that no record names. If there is a record, it had just connected, and
    nothing was taken from it. ready is called once it is served again.
    """
    scope = Scope(vm.store)
    if lost is not None and left is not None:
        fd = OwnedFd(os.dup(vm.store.left()[lost].fileno()))
        ready()
        await serve_front_end(vm, fd)
        return
    if lost is not None:
        await _serve_inert(vm, None, scope, scope.adopt(lost), "its state was lost", ready)
        return
    if left is None or not left.attached:
        return
    try:
        with reading("connection"):
            socket = scope.adopt(str(left.areas["connection"]["socket"]))
    except StateError as error:
        vm.log.warning(f"its front end's socket was lost: {error}")
        return
    try:
        found = _connection(vm, left, scope, socket)
    except OSError:
        raise  # a shortage: the next process may have more
    except Exception:
        vm.crashed()
        raise
    if isinstance(found, str):
        await _serve_inert(vm, left, scope, socket, found, ready)
    else:
        target = vm.settings.target
        is_other = target != left.spec.settings.target
        await _serve(vm, scope, found, ready, target if is_other else None)


def _connection(vm: Vm, left: LeftVm, scope: Scope, socket: OwnedFd) -> Left | str:
    """The connection as it was left, or why it cannot be used."""
    reason = left.areas["connection"].get("inert")
    if reason is not None:
        return str(reason)
    if vm.crashes >= MAX_CRASHES:
        return f"it ended this program {vm.crashes} times"
    journal = left.record.journal
    try:
        return read_connection(left.areas, socket, journal, scope, outlives=vm.store.active)
    except StateError as error:
        return f"what is known of it cannot be used: {error}"


async def _serve(
    vm: Vm, scope: Scope, left: Left, ready: Callable[[], None], target: int | None
) -> None:
    """target: a setting that became another one meanwhile, None if none did."""

    async def prepare(connection: FrontEndConnection) -> None:
        await connection.resume(left)
        if target is not None:
            connection.set_target(target)
        ready()

    await run_connection(vm, left.transport, scope, left.peer_connected, prepare)
    vm.crashes = 0
    vm.save()


async def _serve_inert(
    vm: Vm,
    left: LeftVm | None,
    scope: Scope,
    socket: OwnedFd,
    reason: str,
    ready: Callable[[], None],
) -> None:
    """What can be read of the connection's state is used: so a stream goes on where it was."""
    partial, pending, answers = None, None, None
    if left is not None:
        document, journal = left.areas["connection"], left.record.journal
        with suppress(StateError), reading("connection"):
            partial = left_partial(document, journal, scope)
        with suppress(StateError), reading("connection"):
            pending = Pending.read(journal, document["applied"], scope)
        answers = document.get("answers")
    transport = Transport(socket, scope, None if vm.record is None else vm.record.journal, partial)
    transport.make_sure()
    vm.inert = InertConnection(vm, transport, scope, reason)
    if answers is not None:
        with suppress(StateError), reading("answers"):
            vm.inert.session.restore(answers)
    vm.inert.resume(pending)
    ready()
    try:
        await vm.inert.serve()
    finally:
        vm.inert = None
    vm.crashes = 0
    vm.save()

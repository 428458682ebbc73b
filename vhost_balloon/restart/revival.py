"""Serves again the front end that the process before this one left.

A front end whose state cannot be used is answered inertly, and its connection kept.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from vhost_balloon.checked import Document, reading
from vhost_balloon.errors import StateError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.front_end.connection import FrontEndConnection, run_connection, serve_front_end
from vhost_balloon.front_end.inert import InertConnection
from vhost_balloon.front_end.parts import Left
from vhost_balloon.front_end.peer import has_gone
from vhost_balloon.front_end.transport import Transport
from vhost_balloon.restart.reattach import left_partial, read_connection, read_pending
from vhost_balloon.store.descriptors import CONNECTION, Store, numbered
from vhost_balloon.vm.vm import Vm

STATE_LOST: Final = "its state was lost"
"""Why a connection of which nothing is known is answered inertly."""

MAX_CRASHES: Final = 3
"""A front end that made this program crash so often is answered inertly: it would do so again, and
the VM's next front end would never be served."""


async def resume_front_end(vm: Vm, areas: Document | None, ready: Callable[[], None]) -> str | None:
    """Serve the front end that was left until it goes; return the name of its socket, None if there
    was no front end.

    areas: what was left on record, None if nothing can be read. ready is called once it is served
    again, or there is none.
    """
    document = None if areas is None else areas["connection"]
    try:
        if areas is not None and isinstance(document, dict):
            name = str(document.get("socket"))
            if (socket := vm.store.take(name)) is not None:
                await _resume(vm, areas, name, socket, ready)
                return name
            vm.log.warning("its front end's socket was lost")
        newest = newest_connection(vm.store)
        if newest is None:
            return None
        socket = vm.store.take(newest)
        assert socket is not None
        if areas is not None and document is None:
            # It had just connected, and nothing was taken from it.
            ready()
            await serve_front_end(vm, socket, newest)
        else:
            await _serve_inert(vm, None, newest, socket, STATE_LOST, ready)
        return newest
    finally:
        ready()


def newest_connection(store: Store) -> str | None:
    """The newest connection that was left and whose front end is there still."""
    for number in reversed(numbered(CONNECTION, store.left(CONNECTION))):
        name = f"{CONNECTION}{number}"
        if not has_gone(store.look(name)):
            return name
    return None


async def _resume(
    vm: Vm, areas: Document, name: str, socket: OwnedFd, ready: Callable[[], None]
) -> None:
    try:
        found = _connection(vm, areas, socket)
    except OSError:
        raise  # a shortage: the next process may have more
    except Exception:
        vm.crashed()
        raise
    if isinstance(found, str):
        await _serve_inert(vm, areas, name, socket, found, ready)
    else:
        await _serve(vm, name, found, ready, vm.settings.target if vm.has_new_target else None)


def _connection(vm: Vm, areas: Document, socket: OwnedFd) -> Left | str:
    """The connection as it was left, or why it cannot be used."""
    reason = areas["connection"].get("inert")
    if reason is not None:
        return str(reason)
    if vm.crashes >= MAX_CRASHES:
        return f"it ended this program {vm.crashes} times"
    assert vm.record is not None
    assert vm.shelf is not None
    try:
        return read_connection(
            areas,
            socket,
            vm.record.journal,
            vm.shelf,
            pipe=vm.pipe,
            outlives=vm.store.active,
        )
    except StateError as error:
        return f"what is known of it cannot be used: {error}"


async def _serve(
    vm: Vm, name: str, left: Left, ready: Callable[[], None], target: int | None
) -> None:
    """target: a setting that became another one meanwhile, None if none did."""

    async def prepare(connection: FrontEndConnection) -> None:
        await connection.resume(left)
        if target is not None:
            connection.set_target(target)
        ready()

    await run_connection(vm, left.transport, name, left.peer_connected, prepare)
    vm.crashes = 0
    vm.save()


async def _serve_inert(
    vm: Vm,
    areas: Document | None,
    name: str,
    socket: OwnedFd,
    reason: str,
    ready: Callable[[], None],
) -> None:
    """What can be read of the connection's state is used: so a stream goes on where it was."""
    assert vm.record is not None
    assert vm.shelf is not None
    partial, pending, answers = None, None, None
    if areas is not None:
        document, journal = areas["connection"], vm.record.journal
        with suppress(StateError), reading("connection"):
            partial = left_partial(document, journal, vm.shelf)
        with suppress(StateError), reading("connection"):
            pending = read_pending(journal, document["applied"], vm.shelf)
        answers = document.get("answers")
    transport = Transport(socket, vm.shelf, vm.journal, vm.pipe, partial=partial)
    transport.make_sure()
    vm.front_end = inert = InertConnection(vm, transport, name, reason)
    vm.status_changed.set()
    if answers is not None:
        with suppress(StateError), reading("answers"):
            inert.session.restore(answers)
    inert.take_over(pending)
    ready()
    try:
        await inert.serve()
    finally:
        vm.front_end = None
        vm.status_changed.set()
    vm.crashes = 0
    vm.save()

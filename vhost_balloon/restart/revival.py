"""Serves the front end that the previous process left.

A front end whose state cannot be used is answered inertly, and keeps its connection.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from vhost_balloon.checked import Document, reading
from vhost_balloon.errors import StateError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.front_end.connection import FrontEndConnection, run_connection, serve_front_end
from vhost_balloon.front_end.documents import read_silent
from vhost_balloon.front_end.inert import InertConnection
from vhost_balloon.front_end.keeper import forget
from vhost_balloon.front_end.parts import LeftConnection
from vhost_balloon.front_end.peer import has_gone
from vhost_balloon.front_end.transport import Transport
from vhost_balloon.restart.reattach import read_connection, read_partial, read_pending
from vhost_balloon.store.descriptors import CONNECTION, Store, numbered
from vhost_balloon.vm.vm import Vm

STATE_LOST: Final = "its state was lost"
"""Why a connection is answered inertly of which only the socket is left."""

MAX_CRASHES: Final = 3
"""Crashes after which a front end is answered inertly. Otherwise it would crash this program again
and again, and the VM's next front end would never be served."""


async def revive_front_end(vm: Vm, areas: Document | None, ready: Callable[[], None]) -> None:
    """Serve the front end that was left, if there is one, until it goes.

    areas: the documents that were left, None if there are none. ready is called once the front end
    is served again, or there is none.
    """
    document = None if areas is None else areas["connection"]
    try:
        if areas is not None and isinstance(document, dict):
            name = str(document.get("socket"))
            if (socket := vm.store.take(name)) is not None:
                await _revive(vm, areas, name, socket, ready)
                return
            vm.log.warning("its front end's socket was lost")
        newest = newest_connection(vm.store)
        if newest is None:
            if document is not None:
                _forget(vm)
            return
        socket = vm.store.take(newest)
        assert socket is not None
        if areas is not None and document is None:
            # It had just connected: none of its messages was taken.
            ready()
            await serve_front_end(vm, socket, newest)
        else:
            await _serve_inert(vm, None, newest, socket, STATE_LOST, ready)
    finally:
        ready()


def _forget(vm: Vm) -> None:
    """Clear the record of a front end that has gone."""
    assert vm.record is not None
    forget(vm.record)
    vm.crashes = 0
    vm.save()


def newest_connection(store: Store) -> str | None:
    """The newest connection that was left and is still open at the other end."""
    for number in reversed(numbered(CONNECTION, store.left(CONNECTION))):
        name = f"{CONNECTION}{number}"
        if not has_gone(store.look(name)):
            return name
    return None


async def _revive(
    vm: Vm, areas: Document, name: str, socket: OwnedFd, ready: Callable[[], None]
) -> None:
    if has_gone(socket):
        # Also if it was disconnected: its guest may still use the rings.
        _forget(vm)
        await vm.forget_front_end(name)
        socket.close()
        vm.log.info("front end gone")
        return
    try:
        found = _rebuild(vm, areas, socket)
    except OSError:
        raise  # a shortage: the next process may have more
    except Exception:
        vm.crashed()
        raise
    if isinstance(found, str):
        await _serve_inert(vm, areas, name, socket, found, ready)
    else:
        await _serve(vm, name, found, ready, vm.settings.target if vm.has_new_target else None)


def _rebuild(vm: Vm, areas: Document, socket: OwnedFd) -> LeftConnection | str:
    """The connection as it was left, or the reason why it cannot be used."""
    reason = areas["connection"].get("inert")
    if reason is not None:
        return str(reason)
    if vm.crashes >= MAX_CRASHES:
        return f"it crashed this program {vm.crashes} times"
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
        return f"its state cannot be used: {error}"


async def _serve(
    vm: Vm, name: str, left: LeftConnection, ready: Callable[[], None], target: int | None
) -> None:
    """target: the target in the settings if it was changed meanwhile, else None."""

    async def prepare(connection: FrontEndConnection) -> None:
        await connection.reattach(left)
        if target is not None:
            connection.orders.postpone(target)
        ready()

    await run_connection(vm, left.transport, left.session, name, left.peer_connected, prepare)
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
    """Use what can be read of the connection's state, so that its stream continues in place."""
    assert vm.record is not None
    assert vm.shelf is not None
    partial, pending, answers, peer_connected, silent = None, None, None, True, False
    if areas is not None:
        document, journal = areas["connection"], vm.record.journal
        with suppress(StateError), reading("connection"):
            partial = read_partial(document, journal, vm.shelf)
        with suppress(StateError), reading("connection"):
            pending = read_pending(journal, document["applied"], vm.shelf)
            silent = read_silent(document, journal.sequence)
        answers, peer_connected = document.get("answers"), document.get("peer-connected", True)
    transport = Transport(socket, vm.shelf, vm.journal, vm.pipe, partial=partial)
    transport.make_sure()
    transport.is_new = silent
    inert = InertConnection(vm, transport, name, reason, peer_connected=peer_connected is True)
    vm.front_end = inert
    vm.status_changed.set()
    if answers is not None:
        with suppress(StateError), reading("answers"):
            inert.session.restore(answers)
    inert.take_over(pending)
    ready()
    try:
        await inert.serve()
    finally:
        vm.status_changed.set()
    vm.crashes = 0
    vm.save()

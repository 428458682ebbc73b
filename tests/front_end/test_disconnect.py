"""An operator ends a front end's connection, whatever it is doing, and the next one is served."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from protocol.vhost_user import HEADER, VERSION, Request
from protocol.virtio_balloon import Queue
from tests.support.command import daemon
from tests.support.control_client import Client
from tests.support.end_to_end import (
    BLOCK,
    MIB,
    ByHand,
    Host,
    LogLines,
    by_hand,
    eventually,
    fill,
    guest_mappings,
    is_filled,
    open_fds,
)
from tests.support.hostile.bad_requests import descriptors
from tests.support.vms.operated import operated
from vhost_balloon.log.lines import BURST
from vhost_balloon.simulator.connection import Connection, connect_socket
from vhost_balloon.simulator.wire import BackEndGone
from vhost_balloon.store.descriptors import CONNECTION
from vhost_balloon.store.shelf import Shelf
from vhost_balloon.vm.vm import Vm

NONE = ("DeviceNotActive", "No balloon device has been activated: VM 'vm1' has no front end")
TABLE = HEADER.pack(Request.SET_MEM_TABLE, VERSION, 264) + bytes(264)


@pytest.fixture
async def vm1(tmp_path: Path) -> AsyncIterator[tuple[Host, Client]]:
    async with operated(tmp_path) as found:
        yield found


async def is_gone(connection: Connection) -> None:
    """Check that the connection has ended; replies that were sent before are skipped."""
    with trio.fail_after(5), suppress(BackEndGone, BrokenPipeError, ConnectionResetError):
        while True:
            await connection.receive_reply()


def nothing_is_left(vm: Vm) -> bool:
    """Neither on the shelf, in use or in flight, nor in the store."""
    shelf = vm.shelf
    assert shelf is not None
    in_flight = [bits for pair in shelf._pairs for _, bits, _ in pair.look() if bits]
    stored = [name for name in vm.store.kept if name.startswith(CONNECTION)]
    return not (shelf.users or in_flight or stored or vm.attached)


# What the front end is doing

State = Callable[[Host, ByHand], Awaitable[None]]


async def served(host: Host, guest: ByHand) -> None:
    await guest.works(host.vm())


async def half_a_header(host: Host, guest: ByHand) -> None:
    await guest.front_end.send_raw(TABLE[:5])


async def half_a_message_with_descriptors(host: Host, guest: ByHand) -> None:
    with descriptors(["memfd"] * 8) as fds:
        await guest.front_end.send_raw(TABLE[:50], fds[:4])
        await wait_all_tasks_blocked()
        await guest.front_end.send_raw(TABLE[50:100], fds[4:])


async def too_many_descriptors(host: Host, guest: ByHand) -> None:
    with descriptors(["memfd"] * 9) as fds:
        await guest.front_end.send_raw(TABLE[:50], fds)


async def an_endless_message(host: Host, guest: ByHand) -> None:
    await guest.front_end.send_raw(HEADER.pack(99, VERSION, (1 << 32) - 1) + bytes(1 << 17))


async def takes_no_reply(host: Host, guest: ByHand) -> None:
    requests = HEADER.pack(Request.GET_FEATURES, VERSION, 0) * 100_000
    with trio.move_on_after(1):  # both directions are full
        await guest.front_end.send_raw(requests)
    assert host.vm().attached


async def with_an_order_pending(host: Host, guest: ByHand) -> None:
    host.vm().device().set_target(16 * MIB)


async def stopped(host: Host, guest: ByHand) -> None:
    await guest.stop()


async def reporting(host: Host, guest: ByHand) -> None:
    """Much of it waits when the order comes."""
    fill(guest.ram, 0, 60 * MIB)
    ring = guest.rings[Queue.REPORTING]
    for start in range(8 * MIB, 56 * MIB, MIB):
        ring.add([(start, MIB, True)])
    ring.kick()


STATES: list[State] = [
    served,
    half_a_header,
    half_a_message_with_descriptors,
    too_many_descriptors,
    an_endless_message,
    takes_no_reply,
    with_an_order_pending,
    stopped,
    reporting,
]


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
async def test_the_connection_ends_and_the_next_front_end_is_served(
    vm1: tuple[Host, Client], state: State
) -> None:
    host, client = vm1
    vm = host.vm()
    await wait_all_tasks_blocked()
    before = open_fds()
    async with by_hand(host.path()) as guest:
        await state(host, guest)
        fill(guest.ram, 60 * MIB, BLOCK)
        await wait_all_tasks_blocked(0.01)
        theirs = await trio.open_unix_socket(str(host.path()))  # waits in the backlog
        with trio.fail_after(2):
            assert await client.execute("vm-disconnect") == {}
        await is_gone(guest.front_end)
        await eventually(lambda: vm.attached)
        assert vm.statistics().regions == ()
        await theirs.aclose()
        await eventually(lambda: not vm.attached)
        ring = guest.rings[Queue.REPORTING]
        ring.add([(60 * MIB, BLOCK, True)])
        ring.kick()
        await wait_all_tasks_blocked(0.01)
        assert is_filled(guest.ram, 60 * MIB, BLOCK), "nothing of it is served any more"
    assert nothing_is_left(vm)
    await wait_all_tasks_blocked(0.01)
    assert open_fds() == before
    assert guest_mappings() == 0
    async with by_hand(host.path()) as guest:
        assert vm.statistics().target == 64 * MIB, "the target was the other front end's"
        await guest.works(vm)
        assert await client.execute("vm-disconnect", id="vm1") == {}
    assert nothing_is_left(vm)


async def test_the_order_is_logged_whatever_front_ends_have_made_of_the_log(
    vm1: tuple[Host, Client], log_lines: LogLines
) -> None:
    host, client = vm1
    for _ in range(BURST):
        await (await trio.open_unix_socket(str(host.path()))).aclose()
    async with by_hand(host.path()):
        assert await client.execute("vm-disconnect") == {}
    assert len(log_lines.having("warning: vm1: the operator disconnects the front end")) == 1


async def test_a_front_end_that_waits_for_the_shelf(
    vm1: tuple[Host, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    host, client = vm1

    def put(shelf: Shelf, fds: object) -> None:
        raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))

    async with by_hand(host.path()) as guest:
        with monkeypatch.context() as patch, descriptors(["eventfd"]) as fds:
            patch.setattr(Shelf, "put", put)
            await guest.front_end.send(Request.SET_VRING_CALL, bytes(8), fds)
            await trio.sleep(0.05)
            with trio.fail_after(2):
                assert await client.execute("vm-disconnect") == {}
        await is_gone(guest.front_end)
    assert nothing_is_left(host.vm())


async def test_a_front_end_that_has_said_nothing(vm1: tuple[Host, Client]) -> None:
    host, client = vm1
    async with Connection(await connect_socket(host.path())) as silent:
        await eventually(lambda: host.vm().attached)
        assert await client.execute("vm-disconnect") == {}
        await is_gone(silent)
    assert nothing_is_left(host.vm())


async def test_only_the_front_end_that_is_attached(vm1: tuple[Host, Client]) -> None:
    host, client = vm1
    assert await client.failure("vm-disconnect") == NONE
    other = ("DeviceNotFound", "Device 'vm2' not found")
    async with by_hand(host.path()) as guest:
        assert await client.failure("vm-disconnect", id="vm2") == other
        await guest.works(host.vm())
    await eventually(lambda: not host.vm().attached)
    assert await client.failure("vm-disconnect", id="vm1") == NONE


async def test_several_orders_at_once(vm1: tuple[Host, Client], tmp_path: Path) -> None:
    """All of them are answered once the front end has gone."""
    host, client = vm1
    async with (
        by_hand(host.path()),
        await trio.open_unix_socket(tmp_path / "control") as stream,
        trio.open_nursery() as nursery,
    ):
        other = Client(stream)
        await other.negotiate()
        for each in (client, other):
            nursery.start_soon(each.execute, "vm-disconnect")
    assert nothing_is_left(host.vm())


async def test_an_upgrade_that_waits_for_the_front_end_ends(vm1: tuple[Host, Client]) -> None:
    """It is held back by a reply that is not taken."""
    host, client = vm1
    async with by_hand(host.path()) as guest:
        await takes_no_reply(host, guest)
        front_end = host.vm().front_end
        assert front_end is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(front_end.hold)
            await wait_all_tasks_blocked(0.01)
            assert await client.execute("vm-disconnect") == {}
    assert nothing_is_left(host.vm())


async def test_with_fd_the_daemon_ends_after_its_reply(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    control = tmp_path / "control"
    options = (f"--fd={theirs.fileno()}", f"--control-socket={control}", "--name=vm1")
    with ours, theirs, daemon(*options, fd=theirs.fileno(), wait_for=control) as running:
        async with await trio.open_unix_socket(control) as stream:
            client = Client(stream)
            await client.negotiate()
            assert await client.execute("vm-disconnect") == {}
        assert running.process.wait(5) == 0
        assert ours.recv(1) == b""

"""Strange descriptors from a front end, beside another VM."""

from __future__ import annotations

import os
import resource
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import pytest
import trio

from protocol import vhost_user_payloads as payloads
from protocol.vhost_user import Request
from protocol.virtio_balloon import Queue
from tests.rig.process import epoll_entries
from tests.support.end_to_end import BLOCK, MIB, ByHand, by_hand, fill, is_refused
from tests.support.hostile.bad_requests import slot
from tests.support.hostile.neighbours import PATIENCE, answers, hostile, neighbour, serves

R = Request
KICKS: Final = 3000
ENTRIES: Final = 20_000
LINGER: Final = 6
"""Seconds for which a close waits."""
HUGE_COUNT: Final = (1 << 64) - 2


async def test_a_kick_that_is_replaced_3000_times() -> None:
    with neighbour() as beside, hostile() as daemon:
        async with by_hand(daemon.socket) as guest:
            index = guest.indexes[Queue.REPORTING]
            ring, front_end = guest.rings[Queue.REPORTING], guest.front_end
            fds, entries = len(daemon.fds()), epoll_entries(daemon.pid)
            for _ in range(KICKS):
                ring.kick_event = front_end.ports[index].renew_kick()
                await front_end.set_vring_fd(R.SET_VRING_KICK, index, ring.kick_event)
            with trio.fail_after(PATIENCE):
                await front_end.get_config()  # all before it was served
                fill(guest.ram, 16 * MIB, BLOCK)
                await guest.report((16 * MIB, BLOCK))
            assert guest.ram.resident_in(16 * MIB, BLOCK) == 0
            # Some come and go all the time.
            assert len(daemon.fds()) < fds + 10
            assert epoll_entries(daemon.pid) < entries + 10
            await answers(guest)
            await beside.goes_on()
        await serves(daemon.socket)


@pytest.mark.parametrize("replaced", ["kick", "call", "err"])
async def test_semaphores_with_huge_counts(replaced: str) -> None:
    """Each read takes one: such a kick is never drained."""
    request = {"kick": R.SET_VRING_KICK, "call": R.SET_VRING_CALL, "err": R.SET_VRING_ERR}[replaced]
    with neighbour() as beside, hostile() as daemon:
        async with by_hand(daemon.socket) as guest:
            for index in sorted(guest.indexes.values()):
                fd = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_CLOEXEC)
                os.eventfd_write(fd, HUGE_COUNT)
                await guest.front_end.tell(request, payloads.build_u64(index), [fd])
                os.close(fd)
            await beside.is_served_for(2)
            with trio.fail_after(PATIENCE):
                assert len(await guest.front_end.get_config()) == 16
                assert await guest.stop()
        await serves(daemon.socket)


def lingering() -> tuple[socket.socket, socket.socket]:
    """A connected TCP socket with bytes that nobody takes, so that its last close waits."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, LINGER))
    ours.setblocking(False)
    try:
        while True:
            ours.send(bytes(65536))
    except BlockingIOError:
        ours.setblocking(True)
        return ours, theirs


async def test_sockets_whose_close_waits() -> None:
    with neighbour() as beside, hostile() as daemon:
        async with by_hand(daemon.socket) as guest:
            ours, peer = lingering()
            kick, event = payloads.build_u64(0), os.eventfd(0, os.EFD_CLOEXEC)
            await guest.front_end.tell(R.SET_VRING_KICK, kick, [ours.fileno()])
            await guest.front_end.get_u64(R.GET_FEATURES)  # the daemon has it by now
            ours.close()
            # Others that replace each other, so that the shelf is cleared of what is gone.
            for _ in range(300):
                await guest.front_end.tell(R.SET_VRING_KICK, kick, [event])
            os.close(event)
            await guest.front_end.set_vring_fd(
                R.SET_VRING_KICK, 0, guest.rings[Queue.INFLATE].kick_event
            )
            await beside.is_served_for(2)
            await answers(guest, 4 * LINGER + PATIENCE)
        peer.close()
        await serves(daemon.socket)


@contextmanager
def crowded_epoll() -> Iterator[int]:
    """An epoll descriptor with ENTRIES entries: eight eventfds, under many numbers each."""
    events = [os.eventfd(1, os.EFD_CLOEXEC) for _ in range(8)]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    with select.epoll() as epoll:
        start = max(map(int, os.listdir("/proc/self/fd"))) + 1
        for event in events:
            for number in range(start, start + ENTRIES // len(events)):
                os.dup2(event, number)
                epoll.register(number, select.EPOLLIN)
                os.close(number)  # the entry stays: the file is open
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        yield epoll.fileno()
    for event in events:
        os.close(event)


async def refuses_all(guest: ByHand, fd: int) -> None:
    """As kick, call and memory."""
    for request in (R.SET_VRING_KICK, R.SET_VRING_CALL, R.SET_VRING_ERR):
        assert await is_refused(guest.front_end, request, payloads.build_u64(0), fd)
    assert await is_refused(guest.front_end, R.ADD_MEM_REG, slot(1 << 32, MIB), fd)


async def test_epoll_descriptors_with_20000_entries() -> None:
    with neighbour() as beside, hostile() as daemon:
        async with by_hand(daemon.socket) as guest:
            for _ in range(3):
                with crowded_epoll() as fd:
                    await refuses_all(guest, fd)
                    await refuses_all(guest, fd)
                await beside.goes_on()
            with trio.fail_after(PATIENCE):
                await answers(guest)
        await serves(daemon.socket)


async def test_an_epoll_descriptor_as_the_back_ends_channel() -> None:
    with neighbour() as beside, hostile() as daemon:
        async with by_hand(daemon.socket) as guest:
            with crowded_epoll() as fd:
                assert await is_refused(guest.front_end, R.SET_BACKEND_REQ_FD, b"", fd)
            await answers(guest)
            await beside.goes_on()

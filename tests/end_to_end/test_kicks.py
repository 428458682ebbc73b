"""Eventfds, end to end: no kick is lost, and no call stops the device."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.vhost_user import Request
from protocol.vhost_user_payloads import build_u64
from protocol.virtio_balloon import Queue
from tests.benchmarks.clocks import cpu_seconds
from tests.rig.process import epoll_entries
from tests.support.command import daemon
from tests.support.end_to_end import (
    MIB,
    PAGE,
    by_hand,
    fill,
    is_refused,
    open_fds,
    serving,
)
from vhost_balloon.fds import Kick
from vhost_balloon.simulator.events import EventFd
from vhost_balloon.simulator.options import DriverOptions

QUIET = DriverOptions(report_delay=None)
TARGET = 32 * MIB
PAGES = 32 * MIB // PAGE

KEPT = 500
"""Kicks that a test keeps open; this process may be allowed no more than 1024 descriptors."""


async def test_a_kick_before_enable_is_not_lost(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        front_end, ring = guest.front_end, guest.rings[Queue.INFLATE]
        await front_end.enable_rings(False)
        fill(guest.ram, 8 * MIB, PAGE)
        ring.add([guest.pfns([8 * MIB // PAGE])])
        ring.kick()
        await front_end.get_u64(Request.GET_FEATURES)
        await wait_all_tasks_blocked(0.01)
        assert ring.used_index == 0, "a disabled ring is not served"
        kick = front_end.ports[0].kick
        assert kick is not None
        await front_end.enable_rings(True)
        await ring.wait_used()
        assert not guest.ram.is_resident(8 * MIB)


async def test_a_guest_that_times_its_requests_keeps_nobody_waiting(
    tmp_path: Path, still_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each comes after the ring was found empty, and before the last look at it."""
    monkeypatch.setattr("vhost_balloon.pace.polling._ALONE", True)
    turns = 0
    seen: list[int] = []
    async with (
        serving(tmp_path) as host,
        by_hand(host.path()) as guest,
        trio.open_nursery() as nursery,
    ):
        ring = guest.rings[Queue.INFLATE]
        take = Kick.take

        def take_and_add(kick: Kick) -> None:
            take(kick)
            if len(seen) < 10:
                seen.append(turns)
                ring.add([guest.pfns([0])])

        async def other_task() -> None:
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        nursery.start_soon(other_task)
        monkeypatch.setattr(Kick, "take", take_and_add)
        ring.add([guest.pfns([0])])
        ring.kick()
        for _ in range(1000):
            await trio.lowlevel.checkpoint()
        assert ring.used_index == 11
        nursery.cancel_scope.cancel()
    assert seen[-1] - seen[0] >= 8, "others had no turn between two requests"


async def test_a_disabled_rings_kick_is_left_unread(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.front_end.enable_rings(False)
        kick = guest.front_end.ports[0].kick
        assert kick is not None
        kick.take()
        kick.signal()
        await wait_all_tasks_blocked(0.01)
        assert kick.take() == 1


async def test_a_started_ring_is_scanned_without_a_kick(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), features=None) as guest:
        ring = guest.rings[Queue.INFLATE]
        fill(guest.ram, 8 * MIB, PAGE)
        ring.add([guest.pfns([8 * MIB // PAGE])])
        front_end = guest.front_end
        renew = front_end.ports[0].renew_kick

        def renew_silently() -> EventFd:
            kick = renew()
            kick.take()
            return kick

        front_end.ports[0].renew_kick = renew_silently  # type: ignore[method-assign]
        await guest.start()
        await ring.wait_used()
        assert not guest.ram.is_resident(8 * MIB)


async def test_a_new_kick_on_a_running_ring(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.works(host.vm())
        before = open_fds()
        ring = guest.rings[Queue.INFLATE]
        for _ in range(3):
            await wait_all_tasks_blocked()  # without a kick the ring is not read
            ring.add([guest.pfns([0])])  # its kick is lost with the old eventfd
            ring.kick_event = guest.front_end.ports[0].renew_kick()
            await guest.front_end.set_vring_fd(Request.SET_VRING_KICK, 0, ring.kick_event)
            await ring.wait_used()
            await guest.works(host.vm())
        await guest.front_end.get_u64(Request.GET_FEATURES)  # all before it was served
        assert open_fds() == before


async def test_a_new_call_on_a_running_ring(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.works(host.vm())
        ring = guest.rings[Queue.INFLATE]
        await guest.front_end.set_vring_fd(Request.SET_VRING_CALL, 0, None)
        await guest.front_end.get_u64(Request.GET_FEATURES)  # all before it was served
        ring.add([guest.pfns([0])])
        ring.kick()
        await eventually_used(ring.used_index + 1, ring)
        with EventFd() as call:
            ring.call_event = call
            await guest.front_end.set_vring_fd(Request.SET_VRING_CALL, 0, call)
            await call.wait()  # earlier used entries are signalled on the new one
            ring.pop_used()
            await guest.works(host.vm())
            assert call.take() == 0


async def eventually_used(index: int, ring: object) -> None:
    for _ in range(1000):
        await wait_all_tasks_blocked()
        if getattr(ring, "used_index", None) == index:
            return
    raise AssertionError("the request was not used")


@pytest.mark.parametrize("blocking", [False, True])
async def test_a_full_call_eventfd_stops_nothing(
    tmp_path: Path, still_clock: MockClock, blocking: bool
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        ring = guest.rings[Queue.INFLATE]
        call = ring.call_event
        assert call is not None
        call.take()
        os.eventfd_write(call.fileno(), (1 << 64) - 2)
        os.set_blocking(call.fileno(), not blocking)
        for number in range(3):
            ring.add([guest.pfns([0])])
            ring.kick()
            await eventually_used(number + 1, ring)
        os.set_blocking(call.fileno(), False)
        assert call.take() == (1 << 64) - 2
        ring.pop_used()
        await guest.works(host.vm())


async def test_a_blocking_kick_eventfd_stops_nothing(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        for ports in guest.front_end.ports:
            if ports.kick is not None:
                os.set_blocking(ports.kick.fileno(), True)
        for _ in range(3):
            await guest.works(host.vm())


async def test_a_kick_that_cannot_be_waited_for_is_refused(
    tmp_path: Path, still_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        with monkeypatch.context() as patch, EventFd() as kick:
            patch.setattr("select.epoll", fails)
            payload = build_u64(0)
            request = Request.SET_VRING_KICK
            assert await is_refused(guest.front_end, request, payload, kick.fileno())
        await guest.works(host.vm())


async def test_replaced_kicks_leave_nothing_behind(tmp_path: Path) -> None:
    """A hostile front end may keep them all open."""
    path = tmp_path / "vm1.sock"
    with ExitStack() as kept, daemon(f"--socket-path={path}", "--stats-interval=0") as served:
        async with by_hand(path) as guest:
            ring = guest.rings[Queue.INFLATE]
            await guest.inflate([0])
            before = epoll_entries(served.process.pid)
            assert before >= 5, "at least one per ring"
            for _ in range(KEPT):
                kick = kept.enter_context(EventFd(1))
                await guest.front_end.set_vring_fd(Request.SET_VRING_KICK, 0, kick)
            ring.kick_event = kick
            await guest.inflate([0])
            assert epoll_entries(served.process.pid) < before + 10, "a few come and go"
        assert served.end()[0] == 0


class Semaphore(EventFd):
    """An eventfd whose reads take one each, with the largest initial count."""

    def __init__(self) -> None:
        self._fd = os.eventfd((1 << 32) - 1, os.EFD_NONBLOCK | os.EFD_SEMAPHORE)


async def test_a_semaphore_with_a_huge_count_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "vm1.sock"
    with daemon(f"--socket-path={path}", "--stats-interval=0") as served:
        async with by_hand(path) as guest:
            ring = guest.rings[Queue.INFLATE]
            with Semaphore() as kick:
                await guest.front_end.set_vring_fd(Request.SET_VRING_KICK, 0, kick)
                ring.kick_event = kick
                for _ in range(3):
                    await guest.inflate([0])
                used = cpu_seconds(served.process.pid)
                await trio.sleep(1)
                assert cpu_seconds(served.process.pid) - used < 0.2
        assert served.end()[0] == 0

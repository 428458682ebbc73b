"""Front ends that come and go, wait and die, end to end."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.vhost_user import Request
from protocol.virtio_balloon import BalloonFeature, Queue
from tests.support.end_to_end import (
    MIB,
    PAGE,
    by_hand,
    eventually,
    guest_mappings,
    open_fds,
    serving,
    to_target,
    told,
)
from vhost_balloon.simulator.guest import running_guest
from vhost_balloon.simulator.options import DriverOptions

QUIET = DriverOptions(report_delay=None)
TARGET = 32 * MIB
PAGES = 32 * MIB // PAGE


async def test_a_new_front_end_starts_without_a_target(tmp_path: Path) -> None:
    async with serving(tmp_path) as host:
        vm = host.vm()
        assert not vm.attached
        for round_number in (1, 2):
            async with running_guest(host.path(), 64 * MIB, QUIET) as guest:
                assert vm.statistics().target == 64 * MIB
                assert vm.statistics().front_end_pid == os.getpid()
                await to_target(host.vm(), guest, TARGET)
                assert vm.counters.inflated_bytes == round_number * 32 * MIB
            await eventually(lambda: not vm.attached)
            gone = vm.statistics()
            assert (gone.target, gone.actual, gone.resident, gone.queues) == (None, None, None, ())
            assert gone.counters.inflated_bytes == round_number * 32 * MIB
        with pytest.raises(Exception, match="No balloon device"):
            vm.device().set_target(TARGET)


async def test_a_second_front_end_waits_for_the_first_to_go(tmp_path: Path) -> None:
    async with serving(tmp_path) as host, trio.open_nursery() as nursery:
        served = trio.Event()

        async def second() -> None:
            async with running_guest(host.path(), 32 * MIB, QUIET) as guest:
                await guest.driver.report(1)
                served.set()

        async with running_guest(host.path(), 64 * MIB, QUIET) as first:
            nursery.start_soon(second)
            await first.touch(8 * MIB)
            await first.free()
            await first.driver.report()
            await wait_all_tasks_blocked(0.02)
            assert not served.is_set()
            assert host.vm().statistics().guest_memory == 64 * MIB
        with trio.fail_after(5):
            await served.wait()


async def test_nothing_is_left_of_many_front_ends(tmp_path: Path, still_clock: MockClock) -> None:
    async with serving(tmp_path) as host:
        await wait_all_tasks_blocked()
        before = open_fds()
        for _ in range(20):
            async with by_hand(host.path(), 16 * MIB) as guest:
                await guest.works(host.vm())
            await wait_all_tasks_blocked()
            assert not host.vm().attached
        assert open_fds() == before
        assert guest_mappings() == 0


async def test_the_backend_channel_may_be_full_or_gone(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        await told(guest)
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                theirs.setblocking(True)
                await guest.front_end.command(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])
            for number in range(1, 2000):  # the front end does not read
                host.vm().device().set_target(number * PAGE)
        host.vm().device().set_target(TARGET)  # closed
        await guest.works(host.vm())


async def test_without_vhost_user_protocol_features(tmp_path: Path, still_clock: MockClock) -> None:
    """An old front end: rings are enabled once started, and memory comes as a table."""
    async with (
        serving(tmp_path) as host,
        by_hand(host.path(), features=None) as guest,
    ):
        front_end = guest.front_end
        front_end.features &= ~(1 << 30)
        features = int(BalloonFeature.MUST_TELL_HOST) | 1 << 32
        await front_end.set_u64(Request.SET_FEATURES, features)
        await front_end.set_mem_table()
        for index, queue in enumerate((Queue.INFLATE, Queue.DEFLATE)):
            await front_end.start_ring(index, guest.rings[queue])
            guest.rings[queue].call_event = front_end.ports[index].masked_call
        await guest.works(host.vm())

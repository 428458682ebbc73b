"""A daemon that waits for its front end's lock in uninterruptible sleep, beside another VM."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from protocol.virtio_balloon import Queue
from tests.support.end_to_end import BLOCK, MIB, ByHand, by_hand, eventually, fill
from tests.support.hostile.neighbours import PATIENCE, answers, hostile, neighbour, serves
from tests.support.hostile.unserved_page import UnservedPage
from tests.support.restarting.scenario import hosting


def sleeps(pid: int) -> bool:
    """Whether one of its threads waits in a way that no signal ends."""
    stats = Path(f"/proc/{pid}/task").glob("*/stat")
    return any(stat.read_text().rpartition(")")[2].split()[0] == "D" for stat in stats)


@asynccontextmanager
async def stuck(guest: ByHand, pid: int) -> AsyncIterator[Callable[[], None]]:
    """The daemon waits in fallocate() for a lock that a write to guest memory holds; what ends
    it."""
    page, fd = UnservedPage(), os.dup(guest.ram.regions[0].fd)
    reporting = guest.rings[Queue.REPORTING]
    fill(guest.ram, 16 * MIB, BLOCK)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, page.write_to, fd, 4 * MIB)
            await trio.sleep(0.2)
            reporting.add([(16 * MIB, BLOCK, True)])
            reporting.kick()
            try:
                await eventually(lambda: sleeps(pid), PATIENCE)
                yield page.release
            finally:
                page.release()
    finally:
        os.close(fd)


async def test_our_fallocate_waits_for_its_write() -> None:
    with neighbour() as beside, hostile() as daemon:
        async with by_hand(daemon.socket) as guest:
            async with stuck(guest, daemon.pid) as release:
                await beside.is_served_for(2)
                assert sleeps(daemon.pid)
                release()
            with trio.fail_after(PATIENCE):
                await guest.rings[Queue.REPORTING].wait_used()
            await answers(guest)
        await serves(daemon.socket)


async def test_a_daemon_that_cannot_be_killed() -> None:
    with neighbour() as beside, hostile() as daemon:
        async with by_hand(daemon.socket) as guest, stuck(guest, daemon.pid) as release:
            process = daemon._started()
            process.kill()
            await beside.is_served_for(2)
            assert process.poll() is None, "SIGKILL has no effect"
            assert sleeps(daemon.pid)
            release()
            with trio.fail_after(PATIENCE):
                assert await trio.to_thread.run_sync(process.wait) == -signal.SIGKILL


async def test_under_a_service_manager_the_next_process_goes_on(tmp_path: Path) -> None:
    with neighbour() as beside:
        async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
            manager = host.manager
            async with stuck(guest, manager.process.pid) as release:
                manager.process.kill()
                await beside.is_served_for(2)
                assert manager.restarts == 0
                release()
                await trio.to_thread.run_sync(manager.wait_restarts, 1)
            with trio.fail_after(PATIENCE):
                await guest.rings[Queue.REPORTING].wait_used()
            await answers(guest)
            await beside.goes_on()

"""Signals, floods and the OOM killer for one VM's daemon, beside another VM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from protocol.vhost_user import HEADER, VERSION, Request
from tests.rig.daemon import Daemon
from tests.rig.errors import RigUnavailable
from tests.rig.host.cgroup import MemoryGroup
from tests.support.end_to_end import BLOCK, MIB, by_hand, fill, is_filled
from tests.support.helpers import GIB
from tests.support.hostile.neighbours import PATIENCE, answers, hostile, neighbour, serves
from tests.support.huge_pages import need_root
from tests.support.restarting.scenario import hosting
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.ring import DriverRing

FLOOD = 20_000
"""Messages a second."""
SECONDS = 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS, signal.SIGSEGV, signal.SIGABRT])
async def test_a_daemon_that_dies_goes_on_under_a_service_manager(
    tmp_path: Path, number: signal.Signals
) -> None:
    with neighbour() as beside:
        async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
            manager = host.manager
            await answers(guest)
            await trio.to_thread.run_sync(manager.kill, number)
            assert manager.restarts == 1
            await answers(guest)
            await beside.goes_on()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS])
async def test_a_daemon_that_dies_alone_takes_nobody_with_it(number: signal.Signals) -> None:
    with neighbour() as beside, hostile() as daemon:
        async with by_hand(daemon.socket):
            os.kill(daemon.pid, number)
            await beside.is_served_for(1)
            assert daemon.status() == -number


async def test_a_stopped_daemon_discards_nothing_that_waited() -> None:
    """When it goes on, the guest may have taken back what it reported."""
    with neighbour() as beside, hostile() as daemon:
        async with by_hand(daemon.socket) as guest:
            fill(guest.ram, 16 * MIB, BLOCK)
            os.kill(daemon.pid, signal.SIGSTOP)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guest.report, (16 * MIB, BLOCK))
                await beside.is_served_for(1.5)
                os.kill(daemon.pid, signal.SIGCONT)
                nursery.cancel_scope.deadline = trio.current_time() + PATIENCE
            assert not nursery.cancel_scope.cancelled_caught
            assert is_filled(guest.ram, 16 * MIB, BLOCK), "acknowledged, and not carried out"
            await answers(guest)


MESSAGES = HEADER.pack(Request.SET_OWNER, VERSION, 0) * 50

_FLOOD = """
import socket, sys, time
data, path = bytes.fromhex(sys.argv[1]), sys.argv[2]
rate, seconds = int(sys.argv[3]), float(sys.argv[4])
sock = socket.socket(socket.AF_UNIX)
sock.connect(path)
started, sent, count = time.monotonic(), 0, len(data) // 12
while time.monotonic() - started < seconds:
    sock.sendall(data)
    sent += count
    time.sleep(max(0.0, sent / rate - (time.monotonic() - started)))
print(sent, flush=True)
"""


@contextmanager
def flooding(daemon: Daemon, rate: int) -> Iterator[subprocess.Popen[str]]:
    """Send messages for some SECONDS, then write how many."""
    words = (MESSAGES.hex(), str(daemon.socket), str(rate), str(SECONDS))
    command = [sys.executable, "-c", _FLOOD, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as flood:
        yield flood
        flood.kill()


@pytest.mark.parametrize("rate", [FLOOD, 100 * FLOOD], ids=["20000-a-second", "without-end"])
async def test_a_flood_of_messages(rate: int) -> None:
    with neighbour() as beside, hostile() as daemon, flooding(daemon, rate) as flood:
        await beside.is_served_for(SECONDS)
        out, _ = await trio.to_thread.run_sync(flood.communicate)
        assert int(out) > FLOOD  # what its daemon takes: the socket's buffer holds the others back
        await serves(daemon.socket)


@contextmanager
def memory_group(limit: int) -> Iterator[MemoryGroup]:
    """Skips the test where there is none to be had."""
    need_root("THE OOM KILLER")
    try:
        group = MemoryGroup("vhost-balloon-neighbours", limit)
    except RigUnavailable as error:
        pytest.skip(f"THE OOM KILLER NOT TESTED: {error.reason}")
    with group:
        yield group


async def test_rings_moved_over_holes_until_the_oom_killer_comes() -> None:
    """What its rings cost is its own cgroup's."""
    with neighbour() as beside, memory_group(128 * MIB) as group, hostile() as daemon:
        group.add(daemon.pid)
        async with by_hand(daemon.socket, GuestRam.create(GIB), features=None) as guest:
            await guest.start()
            await guest.stop()
            ring = DriverRing(guest.ram, 64)
            ring.size = 32768
            process = daemon._started()
            for number in range(900):
                ring.descriptors = (2 + number) * MIB
                ring.available, ring.used = ring.descriptors + 524288, ring.descriptors + 655360
                try:
                    await guest.front_end.start_ring(0, ring)
                    await guest.front_end.get_vring_base(0)
                except Exception:
                    break
            with trio.fail_after(PATIENCE):
                assert await trio.to_thread.run_sync(process.wait) == -signal.SIGKILL
            assert group.kills() >= 1
            await beside.goes_on()

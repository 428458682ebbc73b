"""An idle daemon wakes only for statistics and the watchdog."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest
import trio

from protocol.virtio_balloon import Queue, StatTag
from tests.rig.qmp import QMPClient
from tests.support.command import daemon
from tests.support.end_to_end import MIB, ByHand, by_hand

SETTLED: Final = 2.0
"""Seconds until all consequences of an event are over: counters are on record, held events sent."""
SECONDS: Final = 3.0
HANDFUL: Final = 3
"""Wakes for other reasons that are tolerated, such as the end of a thread."""


def switches(pid: int) -> int:
    """Voluntary context switches of all threads of a process."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        text = (task / "status").read_text()
        total += int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return total


async def wakes(pid: int) -> int:
    """Wakes within SECONDS, once the daemon has settled."""
    await trio.sleep(SETTLED)
    before = switches(pid)
    await trio.sleep(SECONDS)
    return switches(pid) - before


async def test_it_sleeps_without_a_front_end(tmp_path: Path) -> None:
    with daemon("--stats-interval=0", f"--socket-path={tmp_path}/vm1.sock") as running:
        assert await wakes(running.process.pid) <= HANDFUL


async def test_it_sleeps_without_requests(tmp_path: Path) -> None:
    """With control clients; with a front end attached, its device stopped, and gone."""
    path, control = tmp_path / "vm1.sock", tmp_path / "control"
    options = ("--stats-interval=0", f"--socket-path={path}", f"--control-socket={control}")
    with daemon(*options, wait_for=control) as running, ExitStack() as connected:
        for _ in range(3):
            qmp = connected.enter_context(QMPClient(control))
            assert qmp.execute("query-vms")
        async with by_hand(path) as guest:
            await guest.inflate(range(5000, 5010))
            await guest.report((32 * MIB, 4 * MIB))
            await guest.front_end.set_config(slice(4, 8), (10).to_bytes(4, "little"))
            assert await wakes(running.process.pid) <= HANDFUL
            await guest.stop()
            assert await wakes(running.process.pid) <= HANDFUL
        assert await wakes(running.process.pid) <= HANDFUL


async def give_statistics(guest: ByHand) -> None:
    while True:
        await guest.rings[Queue.STATS].submit([guest.stats({int(StatTag.MEMFREE): 7 * MIB})])


async def test_with_statistics_it_wakes_for_them(tmp_path: Path) -> None:
    """One wake to request a sample, one to receive it."""
    path = tmp_path / "vm1.sock"
    with daemon("--stats-interval=1", f"--socket-path={path}") as running:
        async with by_hand(path) as guest, trio.open_nursery() as nursery:
            nursery.start_soon(give_statistics, guest)
            found = await wakes(running.process.pid)
            nursery.cancel_scope.cancel()
    assert SECONDS - 1 <= found <= 2 * (SECONDS + 1) + HANDFUL


async def test_under_a_service_manager_it_wakes_for_the_watchdog(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, interval = tmp_path / "vm1.sock", 1.0
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        await manager.bind(f"{tmp_path}/notify")
        nursery.start_soon(read_all, manager)
        monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
        monkeypatch.setenv("WATCHDOG_USEC", str(int(2e6 * interval)))
        monkeypatch.setenv("FDSTORE", "16")
        with daemon("--stats-interval=0", f"--socket-path={path}") as running:
            async with by_hand(path) as guest:
                await guest.inflate([5000])
                found = await wakes(running.process.pid)
        nursery.cancel_scope.cancel()
    assert SECONDS / interval - 1 <= found <= SECONDS / interval + 1 + HANDFUL


async def read_all(manager: trio.socket.SocketType) -> None:
    while True:
        await manager.recv(4096)

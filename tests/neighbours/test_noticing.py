"""A neighbour that is disturbed on purpose says so: what the other tests rely on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
import trio

from tests.support.end_to_end import BLOCK, PAGE
from tests.support.hostile.neighbours import INFLATED, KEPT, LIMIT, Neighbour, neighbour


def memory_of(beside: Neighbour) -> int:
    """Its guest's memory, by the descriptor that its daemon has."""
    for number, link in beside.daemon.fds().items():
        if "simulated-guest-ram" in link:
            return os.open(f"/proc/{beside.daemon.pid}/fd/{number}", os.O_RDWR)
    raise AssertionError("the daemon has no memory of its guest")


def stopped(beside: Neighbour) -> None:
    os.kill(beside.daemon.pid, signal.SIGSTOP)
    time.sleep(1.2 * LIMIT)
    os.kill(beside.daemon.pid, signal.SIGCONT)


def killed(beside: Neighbour) -> None:
    beside.daemon.kill()


def overwritten(beside: Neighbour) -> None:
    os.pwrite(memory_of(beside), b"\0", KEPT.start + BLOCK // 2)


def overwritten_while_inflated(beside: Neighbour) -> None:
    """As a daemon that discards one page too many does."""
    fd = memory_of(beside)
    ends = time.monotonic() + 20
    while time.monotonic() < ends and not beside.problems():
        os.pwrite(fd, b"\0", (INFLATED + 1) * PAGE)


def paused(beside: Neighbour) -> None:
    """Reports are acknowledged and not carried out."""
    with beside.daemon.qmp() as qmp:
        qmp.execute("balloon-pause", {"id": "vm"})


DISTURBED: list[tuple[Callable[[Neighbour], None], str]] = [
    (stopped, "took"),
    (killed, "its daemon ended with status -9"),
    (overwritten, "memory that nobody named is lost"),
    (overwritten_while_inflated, "pages beside"),
    (paused, "were not discarded"),
]


@pytest.mark.parametrize(("disturb", "says"), DISTURBED, ids=[f.__name__ for f, _ in DISTURBED])
async def test_it_notices(disturb: Callable[[Neighbour], None], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        await disturbed(disturb)


async def disturbed(disturb: Callable[[Neighbour], None]) -> None:
    with neighbour() as beside:
        await trio.to_thread.run_sync(disturb, beside)
        await beside.goes_on()


async def test_alone_it_notices_nothing() -> None:
    with neighbour() as beside:
        await beside.is_served_for(1)
        assert {each.what for each in beside.answered()} == {
            *("report", "inflate", "deflate"),
            *("read", "write"),
        }

"""Many simulated VMs in one process, each driven by hand.

Crowd runs it in the daemon's PID namespace, since the daemon inspects its front ends' processes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from protocol.virtio_balloon import Queue, StatTag
from tests.rig.systemd import SystemdHost
from tests.support.end_to_end import MIB, PAGE, ByHand, by_hand, fill
from tests.support.hostile.pinning import passed_through
from tests.support.vms.remote import Remote, serve

RAM: Final = 2 * MIB
"""One for the driver's area, one for the rest."""
INFLATED: Final = RAM - PAGE
REPORTED: Final = RAM - 2 * PAGE
"""Addresses of the pages that each VM gives away."""
USE_PAUSE: Final = 0.002
"""Seconds between two uses of a balloon that is used all the time."""
ENOUGH: Final = 20
"""Uses that show that a balloon works meanwhile; undisturbed, there are hundreds a second."""


class Uses(NamedTuple):
    """How often a VM gave pages away, how often they stayed, and the longest that it took
    (seconds)."""

    times: int
    kept: int
    longest: float


class Crowd(Remote):
    """The process, seen from a test."""

    def __init__(self, host: SystemdHost) -> None:
        super().__init__("tests.support.vms.crowd", host.forker)

    def attach(self, paths: Mapping[str, Path], timeout: float = 240) -> float:
        """Connect one VM to each path and start its device; seconds that all of it took."""
        sockets = {vm: str(path) for vm, path in paths.items()}
        return float(self.call("attach", timeout=timeout, sockets=sockets))

    def use(self, vms: Sequence[str] | None = None, timeout: float = 120) -> float:
        """See that each balloon frees one page on inflating and one on a report; seconds."""
        return float(self.call("use", timeout=timeout, vms=vms))

    def give_statistics(self) -> None:
        """Have each VM answer whenever it is asked for statistics."""
        self.call("give_statistics")

    def begin_using(self, vm: str) -> None:
        """Have a VM use its balloon all the time, until end_using()."""
        self.call("begin_using", vm=vm)

    def end_using(self) -> Uses:
        """What came of it."""
        return Uses(*self.call("end_using"))

    def kept(self, timeout: float = 120) -> bool:
        """Have each VM give away what it does in use(); whether all of that stays."""
        return bool(self.call("kept", timeout=timeout))

    def plug(self) -> None:
        """Have the process open what looks like a device that is passed through to a guest."""
        self.call("plug")

    def unplug(self) -> None:
        """Close it again."""
        self.call("unplug")

    def begin_to_ask(self) -> None:
        """Have each VM ask something of its balloon now; result() gives the seconds until the
        last one was answered."""
        self.begin("ask")


class _Guests:
    """The process's own view."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._guests: dict[str, ByHand] = {}
        self._nursery = nursery
        self._uses = Uses(0, 0, 0.0)
        self._ending = trio.Event()
        self._ended = trio.Event()
        self._plugged = ExitStack()

    async def attach(self, sockets: dict[str, str], ram: int = RAM) -> float:
        started = time.monotonic()
        async with trio.open_nursery() as attaching:
            for vm, path in sockets.items():
                attaching.start_soon(self._nursery.start, self._live, vm, path, ram)
        return time.monotonic() - started

    async def _live(self, vm: str, path: str, ram: int, task_status: trio.TaskStatus[None]) -> None:
        async with by_hand(Path(path), ram) as guest:
            self._guests[vm] = guest
            task_status.started()
            await trio.sleep_forever()

    async def use(self, vms: list[str] | None) -> float:
        started = time.monotonic()
        async with trio.open_nursery() as using:
            for vm in vms or self._guests:
                using.start_soon(_use, self._guests[vm])
        return time.monotonic() - started

    async def give_statistics(self) -> None:
        for guest in self._guests.values():
            self._nursery.start_soon(_give_statistics, guest)

    async def begin_using(self, vm: str) -> None:
        self._uses, self._ending, self._ended = Uses(0, 0, 0.0), trio.Event(), trio.Event()
        self._nursery.start_soon(self._keep_using, self._guests[vm])

    async def end_using(self) -> Uses:
        self._ending.set()
        await self._ended.wait()
        return self._uses

    async def _keep_using(self, guest: ByHand) -> None:
        """One use more than was asked for: it begins after what ended it."""
        is_last = False
        while not is_last:
            is_last = self._ending.is_set()
            started = time.monotonic()
            kept = any(await _give(guest))
            times, stayed, longest = self._uses
            longest = max(longest, time.monotonic() - started)
            self._uses = Uses(times + 1, stayed + kept, longest)
            await trio.sleep(USE_PAUSE)
        self._ended.set()

    async def kept(self) -> bool:
        return all([await _give(guest) == [True, True] for guest in self._guests.values()])

    async def plug(self) -> None:
        self._plugged.enter_context(passed_through())

    async def unplug(self) -> None:
        self._plugged.close()

    async def ask(self) -> float:
        started = time.monotonic()
        async with trio.open_nursery() as asking:
            for guest in self._guests.values():
                asking.start_soon(guest.inflate, [INFLATED // PAGE])
        return time.monotonic() - started

    async def fill(self, size: int) -> None:
        for guest in self._guests.values():
            fill(guest.ram, guest.ram.driver_area_end, size)


async def _use(guest: ByHand) -> None:
    """Give two pages away, and see them gone."""
    inflated, reported = await _give(guest)
    assert not inflated, "an inflated page stays"
    assert not reported, "a reported page stays"


async def _give_statistics(guest: ByHand) -> None:
    while True:
        values = {int(StatTag.MEMFREE): MIB, int(StatTag.MEMTOT): RAM}
        await guest.rings[Queue.STATS].submit([guest.stats(values)])


async def _give(guest: ByHand) -> list[bool]:
    """Inflate a page and report another; whether they are resident then. Takes the first one back,
    as a driver does."""
    for page in (INFLATED, REPORTED):
        fill(guest.ram, page, PAGE)
    await guest.inflate([INFLATED // PAGE])
    await guest.report((REPORTED, PAGE))
    resident = [guest.ram.is_resident(page) for page in (INFLATED, REPORTED)]
    await guest.rings[Queue.DEFLATE].submit([guest.pfns([INFLATED // PAGE])])
    return resident


async def _main() -> None:
    async with trio.open_nursery() as nursery:
        guests = _Guests(nursery)
        orders: tuple[Any, ...] = (
            guests.attach,
            guests.use,
            guests.give_statistics,
            guests.begin_using,
            guests.end_using,
            guests.kept,
            guests.plug,
            guests.unplug,
            guests.ask,
            guests.fill,
        )
        await serve({order.__name__: order for order in orders})
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_main)

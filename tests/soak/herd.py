"""The simulated guests of a soak, in one process, each acting at random; and one probe.

The probe uses its balloon continuously and reports the longest wait of its guest.
"""

from __future__ import annotations

import math
import random
import traceback
from collections import Counter
from pathlib import Path
from typing import Any, Final

import trio

from protocol.virtio_balloon import Queue
from tests.soak.bad_visitor import visit
from tests.support.end_to_end import MIB, PAGE, by_hand, fill
from tests.support.vms.remote import serve
from vhost_balloon.simulator.allocator import GuestOutOfMemory
from vhost_balloon.simulator.guest import SimulatedGuest, running_guest

RAM: Final = 16 * MIB
PATIENCE: Final = 60.0
"""Time limit for any operation, restarts included, in seconds."""
PROBE_PAUSE: Final = 0.02


class Herd:
    """attach() starts the guests, move() lets them act, and rest() brings them to rest."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._random = random.Random()
        self._counts: Counter[str] = Counter()
        self._problems: list[str] = []
        self._longest = 0.0
        self._moving = trio.Event()
        self._probed = trio.Event()
        self._resting: dict[str, trio.Event] = {}

    async def attach(
        self, seed: int, guests: dict[str, str], probe: str, visited: list[str]
    ) -> None:
        """Start all guests at rest. visited: sockets whose front ends misbehave."""
        self._random.seed(seed)
        for name, path in guests.items():
            self._resting[name] = trio.Event()
            self._nursery.start_soon(self._live, name, path)
        for path in visited:
            self._resting[path] = trio.Event()
            self._nursery.start_soon(self._visit, path)
        self._nursery.start_soon(self._probe, probe)
        await self._all_rest()

    async def move(self) -> None:
        """Let all guests act."""
        for name in self._resting:
            self._resting[name] = trio.Event()
        self._moving.set()

    async def rest(self) -> dict[str, Any]:
        """Bring all guests to rest, with no memory in use; return what has happened so far."""
        self._moving = trio.Event()
        await self._all_rest()
        return {**self._counts, "longest": self._longest, "problems": self._problems}

    async def longest(self) -> float:
        """The probe's longest wait since the last call; waits for the current one to end, and
        includes it."""
        with trio.move_on_after(PATIENCE):
            for _ in range(2):
                await self._probed.wait()
        longest, self._longest = self._longest, 0.0
        return longest

    async def _all_rest(self) -> None:
        with trio.fail_after(4 * PATIENCE):
            for event in list(self._resting.values()):
                await event.wait()

    def _failed(self, name: str) -> None:
        self._problems.append(f"{name}: {traceback.format_exc()[-2000:]}")

    # Guests

    async def _live(self, name: str, path: str) -> None:
        while True:
            try:
                with trio.CancelScope(deadline=trio.current_time() + PATIENCE) as attaching:
                    async with running_guest(path, RAM) as guest:
                        attaching.deadline = math.inf
                        await self._live_attached(name, guest)
                if attaching.cancelled_caught:
                    raise AssertionError("it could not attach")
            except Exception:
                self._failed(name)
                await trio.sleep(1)

    async def _live_attached(self, name: str, guest: SimulatedGuest) -> None:
        """Act until it is time to reconnect."""
        while True:
            if not self._moving.is_set():
                await self._calm(guest)
                self._resting[name].set()
                await self._moving.wait()
            await trio.sleep(self._random.uniform(0, 0.5))
            what = self._random.choices(
                ("use", "free", "stop", "reboot", "reconnect"), (10, 6, 3, 1, 1)
            )[0]
            self._counts[what] += 1
            if what == "reconnect":
                return
            with trio.fail_after(PATIENCE):
                await self._act(guest, what)
                await self._check(guest)

    async def _act(self, guest: SimulatedGuest, what: str) -> None:
        match what:
            case "use":
                try:
                    await guest.touch(self._random.randrange(1, 4) * MIB)
                except GuestOutOfMemory:
                    await guest.free()
            case "free":
                await guest.free(self._random.randrange(1, 8) * MIB)
            case "stop":
                await guest.stop()
                await trio.sleep(self._random.uniform(0, 0.5))
                await guest.cont()
            case "reboot":
                await guest.reboot()

    async def _check(self, guest: SimulatedGuest) -> None:
        lost = await guest.verify()
        if lost:
            raise AssertionError(f"{lost} pages were lost")
        if guest.back_end_gone.is_set():
            raise AssertionError("the daemon has ended the connection")
        self._counts["verified"] += 1

    async def _calm(self, guest: SimulatedGuest) -> None:
        with trio.fail_after(PATIENCE):
            await self._check(guest)
            await guest.free()

    # Others

    async def _visit(self, path: str) -> None:
        while True:
            self._resting[path].set()
            await self._moving.wait()
            await trio.sleep(self._random.uniform(0, 0.5))
            self._counts["bad visits"] += 1
            try:
                with trio.move_on_after(2):  # some wait for an answer that never comes
                    await visit(path, self._random)
            except Exception:
                self._failed(path)

    async def _probe(self, path: str) -> None:
        async with by_hand(Path(path), 2 * MIB) as guest:
            page = guest.ram.size - PAGE
            while True:
                fill(guest.ram, page, PAGE)
                started = trio.current_time()
                with trio.move_on_after(PATIENCE) as scope:
                    await guest.inflate([page // PAGE])
                    self._longest = max(self._longest, trio.current_time() - started)
                    await guest.rings[Queue.DEFLATE].submit([guest.pfns([page // PAGE])])
                if scope.cancelled_caught:
                    self._problems.append("the probe was never answered")
                    return
                self._counts["probed"] += 1
                self._probed.set()
                self._probed = trio.Event()
                await trio.sleep(PROBE_PAUSE)


async def _main() -> None:
    async with trio.open_nursery() as nursery:
        herd = Herd(nursery)
        orders = (herd.attach, herd.move, herd.rest, herd.longest)
        await serve({order.__name__: order for order in orders})
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_main)

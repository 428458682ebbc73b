"""Every byte that came back to the host is counted as freed once, whatever comes in between."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocol.virtio_balloon import Queue
from tests.support.end_to_end import MIB, PAGE, ByHand, by_hand, fill, refused, serving
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.vm.vm import Vm

FIRST, COUNT = 8 * MIB // PAGE, 6144
DATA = (FIRST * PAGE, COUNT * PAGE)
SERVED = (Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING)


class Driver:
    """Keeps all rings busy at random, and uses pages meanwhile.

    lost: bytes that the host had given to the guest's data and has back.
    """

    def __init__(self, guest: ByHand, vm: Vm, seed: int) -> None:
        self.guest = guest
        self.vm = vm
        self.random = random.Random(seed)
        self._given = 0

    @property
    def lost(self) -> int:
        return self._given - self.guest.ram.resident_in(*DATA)

    def pages(self) -> list[int]:
        """A run, scattered pages, or some pages several times."""
        first = FIRST + self.random.randrange(COUNT)
        length, step = self.random.choice([(1, 1), (64, 1), (600, 1), (90, 3), (256, 7)])
        numbers = list(range(first, min(first + length * step, FIRST + COUNT), step))
        return numbers + self.random.choices(numbers, k=self.random.choice([0, 0, 5]))

    def touch(self) -> None:
        before = self.guest.ram.resident_in(*DATA)
        for number in self.pages():
            fill(self.guest.ram, number * PAGE, PAGE)
        self._given += self.guest.ram.resident_in(*DATA) - before

    def ask(self, queue: Queue) -> None:
        """Make a few requests at once."""
        ring = self.guest.rings[queue]
        for _ in range(self.random.choice([1, 1, 8])):
            numbers = self.pages()
            if queue is Queue.REPORTING:
                size = len(set(numbers)) * PAGE
                size = min(size, (FIRST + COUNT - numbers[0]) * PAGE)
                ring.add([(numbers[0] * PAGE, size, True)])
            else:
                ring.add([self.guest.pfns(numbers)])
        ring.kick()

    async def answered(self) -> None:
        for queue in SERVED:
            ring = self.guest.rings[queue]
            while ring.used_index != ring.available_index:
                await ring.wait_used()
            ring.pop_used()

    async def step(self) -> None:
        for _ in range(self.random.randrange(6)):
            self.touch()
            self.ask(self.random.choice(SERVED))
            for _ in range(self.random.randrange(8)):
                await trio.lowlevel.checkpoint()
                assert self.vm.counters.freed_bytes == self.lost
        if not self.random.randrange(4):  # unfinished requests are served again
            await self.guest.start(bases=await self.guest.stop())
        await self.answered()
        assert self.vm.counters.freed_bytes == self.lost


@pytest.mark.parametrize("seed", range(6))
async def test_freed_is_what_the_file_lost(
    tmp_path: Path, still_clock: MockClock, seed: int
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path(), GuestRam.create(64 * MIB)) as guest:
        driver = Driver(guest, host.vm(), seed)
        for _ in range(25):
            await driver.step()
        assert driver.lost > MIB
        assert not refused(host.vm())


async def test_pages_that_two_queues_name_at_once_are_freed_once(
    tmp_path: Path, still_clock: MockClock
) -> None:
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        fill(guest.ram, *DATA)
        inflate, report = guest.rings[Queue.INFLATE], guest.rings[Queue.REPORTING]
        chains = [guest.pfns(range(FIRST + n, FIRST + n + 64)) for n in range(0, 1024, 32)]
        written = guest.ram.resident()
        for number, chain in enumerate(chains):
            inflate.add([chain])
            report.add([((FIRST + 32 * number) * PAGE, 64 * PAGE, True)])
            inflate.kick()
            report.kick()
        await wait_all_tasks_blocked()
        assert (inflate.used_index, report.used_index) == (32, 32)
        assert host.vm().counters.freed_bytes == written - guest.ram.resident() == 1056 * PAGE
        assert host.vm().counters.inflated_bytes >= 1056 * PAGE

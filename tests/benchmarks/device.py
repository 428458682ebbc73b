"""Device level: sends the same requests to both devices, without a guest processor.

Each round runs every work on each side, in turns. Before, all guest memory is touched; after,
exactly the named pages must be gone. The floor is a process that only punches the same holes in
memory of the same kind: merged as far as one kick allows, and singly.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    nullcontext,
)
from typing import Final

import trio

from protocol.virtio_balloon import Queue
from tests.benchmarks.clocks import cpu_seconds
from tests.benchmarks.programs.neighbour import Neighbour
from tests.benchmarks.report import Bar, Row
from tests.benchmarks.sides import Side, daemon_side, guest_ram, qemu_side
from tests.benchmarks.vcpu import BusyProcessor
from tests.benchmarks.works import FIRST, Work, inflates, reports, single_pages
from tests.rig.memory import GiB, MiB
from vhost_balloon.memory.ranges import merge, subtract, total
from vhost_balloon.simulator.memory import GuestRam

LOADED: Final = "busy vCPU: "
"""Prefix for works whose memory a running processor has mapped."""

TRIES: Final = 3

_BUSY: Final = frozenset(
    (
        "inflate contiguous up, 1 per kick",
        "inflate scattered, 1 per kick",
        "report 32 x 4 MiB, contiguous",
    )
)

Figures = dict[str, dict[str, list[float]]]
"""Work -> series -> one value per round."""


class WrongPages(Exception):
    """A device freed pages other than those named."""


class Floor:
    """Memory of the same kind, and a process that punches holes into it."""

    def __init__(self, ram: GuestRam, neighbour: Neighbour, puncher: Neighbour) -> None:
        self.ram = ram
        self.neighbour = neighbour
        self.puncher = puncher


class Benchmark:
    """The two sides, the floor, and the measurements so far.

    Attributes:
        times: GiB/s.
        cpu: seconds per GiB.
        trips: medians of a round, in microseconds.
        late: number of measurements with pages left, by work.
    """

    def __init__(self, sides: list[Side], floor: Floor, memory: int) -> None:
        self.times: Figures = defaultdict(lambda: defaultdict(list))
        self.cpu: Figures = defaultdict(lambda: defaultdict(list))
        self.trips: Figures = defaultdict(lambda: defaultdict(list))
        self.late: Counter[str] = Counter()
        self._sides = sides
        self._floor = floor
        self._memory = memory

    def round(self, works: list[Work], pages: int) -> None:
        """Measure everything once; the sides take turns going first."""
        for work in works:
            for side in self._sides:
                self._serve(side, work, work.name)
            self._punch(work, work.name)
        for work in works:
            if work.name in _BUSY:
                self._round_busy(work)
        for side in self._sides:
            self._round_trips(side, pages)
        self._sides.reverse()

    def _serve(self, side: Side, work: Work, name: str) -> None:
        """Measure one work; repeat if the device was late and left pages (the daemon holds no
        request for more than half a second). Finally, count only the freed pages."""
        for _ in range(TRIES):
            side.neighbour.touch([(FIRST, self._memory)])
            used = cpu_seconds(side.pid)
            elapsed = sum(side.submit(work.queue, kick) for kick in work.kicks)
            used = cpu_seconds(side.pid) - used
            left = bytes_left(side.ram, work, self._memory)
            if not left:
                break
            print(f"device: {side.name}: {name}: {left} bytes left", file=sys.stderr)
        else:
            self.late[name] += 1
        self.cpu[name][side.name].append(used / work.size * GiB)
        self.times[name][side.name].append((work.size - left) / GiB / elapsed)

    def _punch(self, work: Work, name: str, *, busy: bool = False) -> None:
        floor = self._floor
        for series, ranges in (("merged", work.merged()), ("singly", work.singly())):
            with self._mapped(floor.ram, busy) as processor:
                floor.neighbour.touch([(FIRST, self._memory)])
                used = cpu_seconds(floor.puncher.pid)
                with processor.running() if processor else nullcontext():
                    elapsed = floor.puncher.punch(ranges)
                used = cpu_seconds(floor.puncher.pid) - used
            self.times[name][f"floor {series}"].append(work.size / GiB / elapsed)
            self.cpu[name][f"floor {series}"].append(used / work.size * GiB)

    def _round_busy(self, work: Work) -> None:
        """Measure with a processor running in the guest's memory: this process, which polls for
        answers."""
        for side in self._sides:
            with self._mapped(side.ram, True):
                self._serve(side, work, LOADED + work.name)
        self._punch(work, LOADED + work.name, busy=True)

    def _mapped(self, ram: GuestRam, busy: bool) -> AbstractContextManager[BusyProcessor | None]:
        """Map the guest's memory in this process if busy."""
        if not busy:
            return nullcontext()
        return BusyProcessor(ram.regions[0].fd, FIRST, self._memory)

    def _round_trips(self, side: Side, pages: int) -> None:
        work = single_pages(pages)
        side.neighbour.touch([(FIRST, self._memory)])
        inflating = [side.submit(Queue.INFLATE, kick) for kick in work.kicks]
        if left := bytes_left(side.ram, work, self._memory):
            print(f"device: {side.name}: single pages: {left} bytes left", file=sys.stderr)
        kinds = {
            "inflate one page": inflating,
            "deflate one page": [side.submit(Queue.DEFLATE, kick) for kick in work.kicks],
            "a kick for nothing": [side.empty_kick() for _ in range(pages)],
        }
        for name, seconds in kinds.items():
            self.trips[name][side.name].append(statistics.median(seconds) * 1e6)


def bytes_left(ram: GuestRam, work: Work, memory: int) -> int:
    """Return how many of the bytes that work names are still there.

    Raises:
        WrongPages: other pages are gone.
    """
    named = merge(work.singly())
    kept = subtract([(FIRST, memory)], named)
    there = sum(ram.resident_in(start, end - start) for start, end in kept)
    if there != total(kept):
        raise WrongPages(f"{work.name}: {total(kept) - there} bytes too many are gone")
    return sum(ram.resident_in(start, end - start) for start, end in named)


@asynccontextmanager
async def benchmark(arena: int) -> AsyncIterator[Benchmark]:
    """Run both devices, each with arena bytes besides its rings."""
    memory = FIRST + arena
    async with AsyncExitStack() as stack:
        daemon = await stack.enter_async_context(daemon_side(memory))
        qemu = stack.enter_context(qemu_side(memory))
        ram, neighbour = stack.enter_context(guest_ram(memory))
        puncher = stack.enter_context(Neighbour(ram.regions[0].fd, memory))
        yield Benchmark([daemon, qemu], Floor(ram, neighbour, puncher), memory)


def measure(rounds: int, *, arena: int = 512 * MiB, pages: int = 500) -> list[Row]:
    """Measure everything `rounds` times; arena is at least 128 MiB."""
    return trio.run(_measure, rounds, arena, pages)


async def _measure(rounds: int, arena: int, pages: int) -> list[Row]:
    works = inflates(FIRST + arena) + reports(FIRST + arena)
    async with benchmark(arena) as bench:
        for number in range(rounds):
            started = time.monotonic()
            bench.round(works, pages)
            seconds = time.monotonic() - started
            print(f"device: round {number + 1} of {rounds}, {seconds:.0f} s", file=sys.stderr)
        return rows(bench)


def rows(bench: Benchmark) -> list[Row]:
    """Return the rows with their bars."""
    found = []
    over = {
        "of qemu": ("daemon", "qemu"),
        "of floor": ("daemon", "floor merged"),
    }
    for name, values in bench.times.items():
        late = bench.late[name]
        note = f"pages were left in {late} of its measurements" if late else ""
        found.append(Row(name, "GiB/s", dict(values), over, _speed_bars(name), note))
    for name, values in bench.cpu.items():
        bars = [Bar("of qemu", 1 / 3, 1 / 5, at_most=True)] if name in _CPU_HELD else []
        found.append(Row(f"CPU of {name}", "s/GiB", dict(values), over, bars))
    for name, values in bench.trips.items():
        bars = [Bar("of qemu", 2, 1.25, at_most=True)] if name == "inflate one page" else []
        note = "median of the requests of a round"
        row = Row(name, "us", dict(values), {"of qemu": over["of qemu"]}, bars, note)
        found.append(row)
    return found


_CPU_HELD: Final = frozenset(
    f"inflate contiguous {way}, {count} per kick" for way in ("up", "down") for count in (1, 64)
)


def _speed_bars(name: str) -> list[Bar]:
    if name.startswith(LOADED):
        return []
    if name.startswith("inflate contiguous"):
        limits = (4.0, 4.5) if name.endswith(", 1 per kick") else (4.5, 5.5)
        return [Bar("of qemu", *limits), Bar("of floor", 0.8, 0.9)]
    if name.startswith("inflate buddy"):
        return [Bar("of qemu", 3.0, 3.5)]
    if name.startswith("inflate scattered"):
        return [Bar("of qemu", 1.2, 1.35)]
    return [Bar("of qemu", 0.97, 1.03), Bar("of floor", 0.9, 0.95)]

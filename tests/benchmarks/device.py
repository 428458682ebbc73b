"""Device level: sends the same requests to both devices, without a guest processor.

Each round runs every work on each side, in turns: the daemon, QEMU, and a process that only punches
the same holes in each way that the kernel offers, of which the faster is the floor. Before, all
guest memory is touched; after, exactly the named pages must be gone.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from functools import partial
from typing import Final

import trio

from protocol.virtio_balloon import Queue
from tests.benchmarks.clocks import cpu_seconds_at_rest
from tests.benchmarks.priority import placed, preferred
from tests.benchmarks.report import Bar, Row
from tests.benchmarks.sides.daemon import daemon_side
from tests.benchmarks.sides.floor import Floor, floors
from tests.benchmarks.sides.qemu import qemu_side
from tests.benchmarks.sides.side import Device, Side
from tests.benchmarks.vcpu import busy_processor
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
    """A side freed pages other than those named."""


class Benchmark:
    """The two devices, the floor, and the measurements so far.

    Attributes:
        times: GiB/s.
        cpu: seconds per GiB.
        trips: medians of a round, in microseconds.
        late: number of measurements with pages left, by work.
        ways: the series of which one is the floor.
    """

    def __init__(self, devices: Sequence[Device], ways: Sequence[Floor], memory: int) -> None:
        self.times: Figures = defaultdict(lambda: defaultdict(list))
        self.cpu: Figures = defaultdict(lambda: defaultdict(list))
        self.trips: Figures = defaultdict(lambda: defaultdict(list))
        self.late: Counter[str] = Counter()
        self.ways = [way.name for way in ways]
        self._sides: list[Side] = [*devices, *ways]
        self._memory = memory

    def round(self, works: list[Work], pages: int) -> None:
        """Measure everything once; the sides take turns going first."""
        for work in works:
            for side in self._sides:
                self._serve(side, work, work.name)
        for work in works:
            if work.name in _BUSY:
                for side in self._sides:
                    memory = side.ram.regions[0].fd, FIRST, self._memory
                    self._serve(side, work, LOADED + work.name, partial(busy_processor, *memory))
        for side in self._sides:
            if isinstance(side, Device):
                self._round_trips(side, pages)
        self._sides.append(self._sides.pop(0))

    def _populate(self, side: Side) -> None:
        """Touch all memory of a side, while the others have none.

        So all sides get the same pages, in the order in which a process gets them that was just
        started. Otherwise each side keeps its own, some of which are faster than others where this
        is a virtual machine; and after scattered frees, contiguous ones take a third longer.
        """
        for other in self._sides:
            other.neighbour.punch([(FIRST, self._memory)])
        side.neighbour.touch([(FIRST, self._memory)])

    def _serve(
        self,
        side: Side,
        work: Work,
        name: str,
        busy: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """Measure one work, while busy() runs. Repeat if the device was late and left pages (the
        daemon holds no request for more than half a second). Finally, count only the freed pages.
        """
        for _ in range(TRIES):
            self._populate(side)
            with busy():
                used = cpu_seconds_at_rest(side.pid)
                with preferred():
                    elapsed = side.give_back(work)
                used = cpu_seconds_at_rest(side.pid) - used
            left = bytes_left(side.ram, work, self._memory)
            if not left:
                break
            print(f"device: {side.name}: {name}: {left} bytes left", file=sys.stderr)
        else:
            self.late[name] += 1
        self.cpu[name][side.name].append(used / work.size * GiB)
        self.times[name][side.name].append((work.size - left) / GiB / elapsed)

    def _round_trips(self, device: Device, pages: int) -> None:
        inflates, deflates, reports = (
            single_pages(pages, queue) for queue in (Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING)
        )
        kinds = {
            "inflate one page": self._one_by_one(device, inflates),
            "deflate one page": self._one_by_one(device, deflates),
            "report one page": self._one_by_one(device, reports),
            "a kick for nothing": [device.empty_kick() for _ in range(pages)],
        }
        for name, seconds in kinds.items():
            self.trips[name][device.name].append(statistics.median(seconds) * 1e6)

    def _one_by_one(self, device: Device, work: Work) -> list[float]:
        """The seconds of each kick. Deflates follow the inflates of the same pages."""
        if work.queue is not Queue.DEFLATE:
            self._populate(device)
        with preferred():
            seconds = [device.submit(work.queue, kick) for kick in work.kicks]
        if left := bytes_left(device.ram, work, self._memory):
            print(f"device: {device.name}: single pages: {left} bytes left", file=sys.stderr)
        return seconds


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
    """Run both devices and the floor, each with arena bytes besides its rings."""
    memory = FIRST + arena
    async with AsyncExitStack() as stack:
        daemon = await stack.enter_async_context(daemon_side(memory))
        qemu = stack.enter_context(qemu_side(memory))
        ways = stack.enter_context(floors(memory))
        sides: list[Side] = [daemon, qemu, *ways]
        served = {side.pid for side in sides}
        stack.enter_context(placed(served, {side.neighbour.pid for side in sides}))
        yield Benchmark([daemon, qemu], ways, memory)


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


_OVER: Final = {
    "of floor": ("daemon", "floor"),
    "of qemu": ("daemon", "qemu"),
    "qemu of floor": ("qemu", "floor"),
}


def rows(bench: Benchmark) -> list[Row]:
    """Return the rows with their bars."""
    speeds, costs, trips = [], [], []
    for name, values in bench.times.items():
        # One way for all rounds: the better of two in each would be the better of their noise too.
        floor = max(bench.ways, key=lambda way: statistics.median(values[way]))
        late = bench.late[name]
        note = f"pages were left in {late} of its measurements" if late else ""
        speed = {**values, "floor": values[floor]}
        speeds.append(Row(name, "GiB/s", speed, _OVER, _speed_bars(name), note))
        cost = {**bench.cpu[name], "floor": bench.cpu[name][floor]}
        bars = [Bar("of qemu", 1 / 3, at_most=True)] if name.startswith(_CPU_HELD) else []
        costs.append(Row(f"CPU of {name}", "s/GiB", cost, _OVER, bars))
    for name, values in bench.trips.items():
        bars = [Bar("speed of qemu's", 0.9)] if name in _TRIPS_HELD else []
        note = "median of the requests of a round"
        over = {"speed of qemu's": ("qemu", "daemon")}
        trips.append(Row(name, "us", dict(values), over, bars, note))
    return [*speeds, *costs, *trips]


_CPU_HELD: Final = "inflate contiguous"
_TRIPS_HELD: Final = ("inflate one page", "report one page")

_OF_FLOOR: Final = {
    "inflate contiguous": (0.90, 0.97),
    "inflate buddy-like": (0.85, 0.90),
    "inflate scattered": (0.90, 0.92),
    "report": (0.98, 0.98),
}
"""How a work's name begins -> bars with one buffer per kick, and with 64."""


def _speed_bars(name: str) -> list[Bar]:
    """A loaded work has none."""
    bars = [
        Bar("of floor", many if name.endswith("64 per kick") else one)
        for work, (one, many) in _OF_FLOOR.items()
        if name.startswith(work)
    ]
    if name.startswith("inflate scattered"):
        bars.append(Bar("of qemu", 1.0))
    return bars

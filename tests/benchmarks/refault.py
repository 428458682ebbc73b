"""What huge pages do for memory that a guest gives back: time of its next use, and what comes back.

A neighbour plays the guest: it writes to every 4 KiB page. The first write to a page that the host
does not have is a fault, in which the host zeroes a page, small or huge. In between, the daemon
discards what a simulated driver gives, in the ways in which Linux gives memory.
"""

from __future__ import annotations

import os
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from protocol.virtio_balloon import Queue
from tests.benchmarks.memory_kinds import HUGE, KINDS, Kind
from tests.benchmarks.programs.neighbour import Neighbour
from tests.benchmarks.report import Row
from tests.benchmarks.sides.daemon import daemon_side
from tests.benchmarks.sides.side import Device
from tests.benchmarks.works import BUFFER_PAGES, FIRST, PAGE, Work, inflates, reports
from tests.rig.memory import MiB
from vhost_balloon.memory.ranges import merge

_GIVEN: Final = (
    "report 32 x 2 MiB, scattered",
    "report 32 x 4 MiB, scattered",
    "inflate scattered, 64 per kick",
    "inflate buddy-like, 64 per kick",
)

Figures = dict[tuple[str, str], dict[str, list[float]]]
"""(figure, unit) -> kind of memory -> values."""


def measure(rounds: int, *, arena: int = 256 * MiB, kinds: Sequence[Kind] = KINDS) -> list[Row]:
    """Measure each kind that the host offers `rounds` times; arena is at least 128 MiB."""
    return trio.run(_measure, rounds, arena, kinds)


def works(arena: int) -> list[Work]:
    """The ways in which the guest gives memory."""
    memory = FIRST + arena
    usual = {work.name: work for work in inflates(memory) + reports(memory)}
    return [*(usual[name] for name in _GIVEN), pieces(arena)]


def pieces(arena: int) -> Work:
    """One 4 KiB page out of each 2 MiB block."""
    pages = [(start, start + PAGE) for start in range(FIRST + HUGE // 2, FIRST + arena, HUGE)]
    buffers = [pages[at : at + BUFFER_PAGES] for at in range(0, len(pages), BUFFER_PAGES)]
    return Work("inflate one page of each 2 MiB", Queue.INFLATE, [[buffer] for buffer in buffers])


async def _measure(rounds: int, arena: int, kinds: Sequence[Kind]) -> list[Row]:
    found: Figures = defaultdict(lambda: defaultdict(list))
    for number in range(rounds):
        for kind in kinds:
            try:
                with kind.make(FIRST + arena) as fd:
                    _warm(kind, fd, arena)
                with kind.make(FIRST + arena) as fd:
                    await _measure_kind(kind, fd, arena, found)
            except OSError as error:
                print(f"refault: {kind.name} is left out: {error}", file=sys.stderr)
            print(f"refault: round {number + 1} of {rounds}, {kind.name}", file=sys.stderr)
    return [Row(name, unit, dict(values)) for (name, unit), values in found.items()]


def _warm(kind: Kind, fd: int, arena: int) -> None:
    """Use as much memory once, and free it: where the host is itself a VM, pages that its own host
    never provided would take many times as long. Closes fd."""
    try:
        with Neighbour(fd, FIRST + arena) as guest:
            _touch_all(guest, kind, arena)
    finally:
        os.close(fd)


def _touch_all(guest: Neighbour, kind: Kind, arena: int) -> float:
    """Return the seconds that it took."""
    everything = [(FIRST, FIRST + arena)]
    if kind.advised:
        guest.ask_for_huge_pages(everything)
    return guest.touch(everything)


async def _measure_kind(kind: Kind, fd: int, arena: int, found: Figures) -> None:
    everything = [(FIRST, FIRST + arena)]

    def note(name: str, unit: str, value: float) -> None:
        found[name, unit][kind.name].append(value)

    async with daemon_side(FIRST + arena, *kind.options, fd=fd) as side:
        guest = side.neighbour
        first = _touch_all(guest, kind, arena)
        note("first use", "us/MiB", first * 1e6 / (arena / MiB))
        note("first use: in huge pages", "%", 100 * _huge(guest.pid) / arena)
        for work in works(arena):
            guest.punch(everything)
            again = guest.touch(everything)
            note("use again after all was discarded", "us/MiB", again * 1e6 / (arena / MiB))
            before = side.ram.resident()
            seconds = side.give_back(work)
            freed = before - side.ram.resident()
            note(f"{work.name}: comes back", "% of it", 100 * freed / work.size)
            note(f"{work.name}: daemon's time", "us/MiB", seconds * 1e6 / (work.size / MiB))
            _take_back(side, work)
            again = guest.touch(merge(work.singly()))
            note(f"{work.name}: use again", "us/MiB", again * 1e6 / (work.size / MiB))
            note(f"{work.name}: in huge pages then", "%", 100 * _huge(guest.pid) / arena)


def _take_back(side: Device, work: Work) -> None:
    """Deflate what was inflated; reported pages are used without a word."""
    if work.queue is Queue.INFLATE:
        for kick in work.kicks:
            side.submit(Queue.DEFLATE, kick)


def _huge(pid: int) -> int:
    """Bytes that a process has mapped in huge pages."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    sizes = re.findall(r"^(?:ShmemPmdMapped|Shared_Hugetlb|Private_Hugetlb):\s+(\d+)", text, re.M)
    return 1024 * sum(map(int, sizes))

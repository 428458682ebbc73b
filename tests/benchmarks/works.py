"""Requests of the device benchmarks: buffers of page numbers, reports, and their patterns."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from protocol.virtio_balloon import Queue
from tests.rig.memory import MiB
from vhost_balloon.memory.ranges import Range, merge

PAGE: Final = 4096
BUFFER_PAGES: Final = 256
REPORT_RANGES: Final = 32
FIRST: Final = 8 * MiB
"""Start of the memory given away; rings and buffers lie below."""

Request = list[Range]
"""The contents of one chain, in order: single pages (inflate) or ranges (reporting)."""


@dataclass(frozen=True)
class Work:
    """Requests to make, grouped by kick.

    size: bytes given away.
    """

    name: str
    queue: Queue
    kicks: Sequence[Sequence[Request]]

    @property
    def size(self) -> int:
        return sum(end - start for start, end in self.singly())

    def singly(self) -> list[Range]:
        """Return each page or range as named."""
        return [item for kick in self.kicks for request in kick for item in request]

    def merged(self) -> list[list[Range]]:
        """Return the ranges that remain of each kick after merging them."""
        return [merge(item for request in kick for item in request) for kick in self.kicks]


def inflates(memory: int, *, per_kick: Sequence[int] = (1, 64)) -> list[Work]:
    """Inflate half of memory (bytes) in each pattern, at each number of buffers per kick.

    Memory below 136 MiB is too small for 64 buffers.
    """
    pages = (memory - FIRST) // PAGE // 2
    pages -= pages % (BUFFER_PAGES * max(per_kick))
    return [
        Work(f"inflate {name}, {count} per kick", Queue.INFLATE, _kicks(pattern(pages), count))
        for name, pattern in PATTERNS.items()
        for count in per_kick
    ]


def reports(memory: int) -> list[Work]:
    """Reports of 32 ranges, adjacent and downwards as Linux sends them, and scattered."""
    works = []
    for size in (2 * MiB, 4 * MiB):
        blocks = (memory - FIRST) // size // 2
        blocks = max(blocks - blocks % REPORT_RANGES, min(blocks, REPORT_RANGES))
        down = [FIRST + size * number for number in reversed(range(blocks))]
        apart = [FIRST + 2 * size * number for number in range(blocks)]
        random.Random(1).shuffle(apart)
        for name, starts in (("contiguous", down), ("scattered", apart)):
            requests = [
                [[(start, start + size) for start in starts[at : at + REPORT_RANGES]]]
                for at in range(0, blocks, REPORT_RANGES)
            ]
            works.append(Work(f"report 32 x {size // MiB} MiB, {name}", Queue.REPORTING, requests))
    return works


def single_pages(count: int, queue: Queue) -> Work:
    """Inflate or report one page with each kick, no two of them adjacent."""
    pages = [FIRST + 2 * PAGE * number for number in range(count)]
    random.Random(2).shuffle(pages)
    return Work("one page", queue, [[[(page, page + PAGE)]] for page in pages])


def _kicks(pages: list[int], per_kick: int) -> list[list[Request]]:
    """Split page numbers into buffers, and buffers into kicks."""
    ranges = [(FIRST + PAGE * page, FIRST + PAGE * (page + 1)) for page in pages]
    buffers = [ranges[at : at + BUFFER_PAGES] for at in range(0, len(ranges), BUFFER_PAGES)]
    return [buffers[at : at + per_kick] for at in range(0, len(buffers), per_kick)]


def _upwards(pages: int) -> list[int]:
    return list(range(pages))


def _downwards(pages: int) -> list[int]:
    """The order in which Linux's driver takes pages in a freshly booted guest."""
    return list(reversed(range(pages)))


def _buddy(pages: int) -> list[int]:
    """Buffers as logged from a real guest: of ten, seven are one run of 256 pages, the others two
    or three runs; downwards within a run; runs anywhere in memory."""
    chooser = random.Random(3)
    blocks = list(range(2 * pages // BUFFER_PAGES))  # each takes a run; 14 are needed for 10
    chooser.shuffle(blocks)
    numbers: list[int] = []
    for buffer in range(pages // BUFFER_PAGES):
        for length in _RUNS[buffer % len(_RUNS)]:
            first = blocks.pop() * BUFFER_PAGES + chooser.randrange(BUFFER_PAGES - length + 1)
            numbers += reversed(range(first, first + length))
    return numbers


_RUNS: Final = (*((256,),) * 7, (128, 128), (128, 64, 64), (192, 64))


def _scattered(pages: int) -> list[int]:
    """Pages in random order, no two of them adjacent."""
    numbers = [2 * number for number in range(pages)]
    random.Random(4).shuffle(numbers)
    return numbers


PATTERNS: Final[dict[str, Callable[[int], list[int]]]] = {
    "contiguous up": _upwards,
    "contiguous down": _downwards,
    "buddy-like": _buddy,
    "scattered": _scattered,
}

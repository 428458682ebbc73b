"""From a chain's buffers to the guest ranges that they name. Pure.

Source: virtio specification, "Traditional Memory Balloon Device": inflate and deflate buffers are
arrays of 32-bit PFNs that the device reads; a reporting request's device-writable buffers are
themselves the pages reported.

Whatever a guest names, it is decoded in steps of bounded work, because one chain may name queue
size x 2^30 pages: between two steps the caller lets others have their turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from protocol.virtio_balloon import BALLOON_PAGE_SIZE, PFN_SHIFT, PFN_SIZE
from vhost_balloon.ranges import Range, chunks, merge, merge_numbers, total
from vhost_balloon.refusal import Refusal
from vhost_balloon.virtqueue import Buffer, ReadMemory

MAX_SLICE_PFNS: Final = 4096
MAX_SLICE_RUNS: Final = 512
"""Page numbers, and runs of them, that are merged with each other; drivers name 256 to 1024 pages
in a request."""

STEP_PFNS: Final = 512
STEP_BUFFERS: Final = 64
STEP_RANGES: Final = 512
STEP_GATHERED: Final = 128
"""Most page numbers, buffers (of reports, too) and ranges of pages in a step, and ranges where
balloon pages are gathered to huge pages: each is some 200 us of work."""


@dataclass(slots=True)
class Named:
    """One step: ranges, sorted and disjoint, and what of the request names nothing usable.

    size is how many bytes of guest memory the buffers name, counting repetitions.
    """

    size: int = 0
    ranges: list[Range] = field(default_factory=list)
    refusals: list[tuple[str, int]] = field(default_factory=list)

    def refuse(self, reason: str, size: int) -> None:
        self.refusals.append((reason, size))


@dataclass(slots=True)
class Numbers:
    """One step: page numbers as they were named, and what is no page number.

    Either runs, of numbers that go up or down by one each, as the ranges they name; or numbers.
    """

    runs: list[Range] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    refusals: list[tuple[str, int]] = field(default_factory=list)

    def refuse(self, reason: str, size: int) -> None:
        self.refusals.append((reason, size))

    @property
    def size(self) -> int:
        """Bytes named, counting repetitions."""
        return total(self.runs) + len(self.numbers) * BALLOON_PAGE_SIZE


_SAME: Final = sum(1 << 8 * PFN_SIZE * place for place in range(STEP_PFNS))
_RISING: Final = sum(place << 8 * PFN_SIZE * place for place in range(STEP_PFNS))


def one_run(data: bytes) -> Range | None:
    """The range of page numbers that go up or down by one each: the usual inflate, told without
    looking at each. None if they do not.

    data: one to STEP_PFNS numbers, together one large number with a digit for each of them.
    """
    mask = (1 << 8 * len(data)) - 1
    first, count = int.from_bytes(data[:PFN_SIZE], "little"), len(data) // PFN_SIZE
    differences = int.from_bytes(data, "little") - first * (_SAME & mask)
    rising = _RISING & mask
    if differences == rising:
        return first << PFN_SHIFT, (first + count) << PFN_SHIFT
    if differences == -rising:
        return (first - count + 1) << PFN_SHIFT, (first + 1) << PFN_SHIFT
    return None


def page_numbers(buffers: Iterable[Buffer], read: ReadMemory) -> Iterator[Numbers]:
    """The page numbers in inflate or deflate buffers, in at least one step.

    Raises RingError where a buffer is not guest memory.
    """
    step, room = Numbers(), STEP_BUFFERS
    for address, length, writable in buffers:
        if not room:
            yield step
            step, room = Numbers(), STEP_BUFFERS
        if writable or length < PFN_SIZE:
            short = Refusal.ODD_TAIL if length else Refusal.EMPTY
            step.refuse(Refusal.DIRECTION if writable else short, length)
            room -= 1
            continue
        if length % PFN_SIZE:
            step.refuse(Refusal.ODD_TAIL, length % PFN_SIZE)
        end = address + length - length % PFN_SIZE
        while address < end:
            if not room or len(step.numbers) == STEP_PFNS:
                yield step
                step, room = Numbers(), STEP_BUFFERS
            data = read(address, min(end - address, STEP_PFNS * PFN_SIZE))
            run = one_run(data)
            count = len(data) // PFN_SIZE
            others = step.numbers if run else step.runs
            if others or len(step.numbers) + count > STEP_PFNS:
                yield step
                step, room = Numbers(), STEP_BUFFERS
            if run:
                step.runs.append(run)
            else:
                step.numbers += memoryview(data).cast("I")
            room -= 1
            address += len(data)
    yield step


def merged(numbers: list[int], most: int = STEP_RANGES) -> Iterator[list[Range]]:
    """Page numbers as ranges, most in a step, which are sorted and disjoint over all steps."""
    if len(numbers) > STEP_PFNS:
        ordered: list[int] = []
        for some in chunks(numbers, STEP_PFNS):
            ordered += sorted(some)
            yield []
        numbers = sorted(ordered)  # which only merges what is sorted
    open_range: list[Range] = []
    for start in range(0, len(numbers), STEP_PFNS):
        stop = start + STEP_PFNS
        ranges = merge_numbers(numbers[start:stop], PFN_SHIFT)
        if open_range:
            ranges[:1] = merge([*open_range, ranges[0]])
        open_range = [ranges.pop()] if stop < len(numbers) else []
        yield from chunks(ranges, most)


def merged_runs(runs: list[Range], most: int = STEP_RANGES) -> Iterator[list[Range]]:
    """The same of runs, of which there are MAX_SLICE_RUNS at most."""
    return chunks(merge(runs), most)


def pages(buffers: Sequence[Buffer], read: ReadMemory, most: int = STEP_RANGES) -> Iterable[Named]:
    """The pages of inflate or deflate buffers, step by step; small buffers are taken together.

    most: ranges in a step. Raises RingError where a buffer is not guest memory.
    """
    if len(buffers) == 1:  # the usual request, told without the machinery for all others
        address, length, writable = buffers[0]
        if not writable and 0 < length <= STEP_PFNS * PFN_SIZE and not length % PFN_SIZE:
            data = read(address, length)
            run = one_run(data)
            if run:
                return [Named(run[1] - run[0], [run])]
            return _named([], list(memoryview(data).cast("I")), Named(), most)
    return _pages(buffers, read, most)


def _pages(buffers: Iterable[Buffer], read: ReadMemory, most: int) -> Iterator[Named]:
    runs: list[Range] = []
    numbers: list[int] = []
    waiting: Named | None = None  # a step without ranges, unless it turns out to be the last
    for step in page_numbers(buffers, read):
        if waiting is not None and (numbers if step.runs else runs if step.numbers else None):
            yield from _named(runs, numbers, waiting, most)
            runs, numbers, waiting = [], [], None
        if waiting is not None:
            yield waiting
        waiting = Named(refusals=step.refusals)
        runs += step.runs
        numbers += step.numbers
        if len(numbers) >= MAX_SLICE_PFNS or len(runs) >= MAX_SLICE_RUNS:
            yield from _named(runs, numbers, waiting, most)
            runs, numbers, waiting = [], [], None
    if waiting is not None:
        yield from _named(runs, numbers, waiting, most)


def _named(runs: list[Range], numbers: list[int], named: Named, most: int) -> Iterator[Named]:
    """What runs or numbers name, to begin with in named; repetitions count in the last step."""
    left = total(runs) + len(numbers) * BALLOON_PAGE_SIZE
    for ranges in merged_runs(runs, most) if runs else merged(numbers, most):
        if named.ranges:
            yield named
            named = Named()
        named.ranges, named.size = ranges, total(ranges)
        left -= named.size
        if not ranges:
            yield named
            named = Named()
    named.size += left
    yield named


def page_buffers_size(buffers: Iterable[Buffer]) -> int:
    """Bytes of guest memory that inflate or deflate buffers name, as pages() counts them."""
    pfns = sum(length // PFN_SIZE for _, length, writable in buffers if not writable)
    return pfns * BALLOON_PAGE_SIZE


def report_size(buffers: Iterable[Buffer]) -> int:
    """Bytes of guest memory that reporting buffers name, as reported() counts them."""
    return sum(length for _, length, writable in buffers if writable)


def reported(buffers: Sequence[Buffer]) -> Iterator[Named]:
    """The ranges of reporting buffers, in at least one step; within a step they are merged."""
    for first in range(0, max(len(buffers), 1), STEP_BUFFERS):
        named = Named()
        ranges: list[Range] = []
        for address, length, writable in buffers[first : first + STEP_BUFFERS]:
            if not length:
                named.refuse(Refusal.EMPTY, 0)
            elif not writable:
                named.refuse(Refusal.DIRECTION, length)
            else:
                ranges.append((address, address + length))
                named.size += length
        named.ranges = merge(ranges)
        yield named

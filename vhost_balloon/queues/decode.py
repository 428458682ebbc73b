"""From a chain's buffers to the guest ranges that they name. Pure.

Source: virtio specification, "Traditional Memory Balloon Device": inflate and deflate buffers are
arrays of 32-bit PFNs that the device reads; a reporting request's device-writable buffers are
themselves the pages reported.

One chain may name queue size x 2^30 pages, so it is decoded slice by slice, each in some two
milliseconds at most. Ranges are merged within a slice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from protocol.virtio_balloon import BALLOON_PAGE_SIZE, PFN_SHIFT, PFN_SIZE
from vhost_balloon.figures.refusal import Refusal
from vhost_balloon.memory.ranges import Range, merge, merge_numbers
from vhost_balloon.queues.virtqueue import Buffer, ReadMemory

READ_PFNS: Final = 512
"""Most page numbers that are read at once; drivers name 256 to 1024 pages in a request."""

SLICE_BUFFERS: Final = 256
SLICE_NUMBERS: Final = 1024
SLICE_BYTES: Final = 64 << 20
"""What ends a slice: buffers, page numbers that are no run, and memory that is named by numbers
(where it is gathered to huge pages, each of these has to be looked at)."""


@dataclass(slots=True)
class Named:
    """One slice: ranges, sorted and disjoint, and what of the request names nothing usable.

    size is how many bytes of guest memory the buffers name, counting repetitions.
    """

    size: int = 0
    ranges: list[Range] = field(default_factory=list)
    refusals: list[tuple[str, int]] = field(default_factory=list)


_SAME: Final = sum(1 << 8 * PFN_SIZE * place for place in range(READ_PFNS))
_RISING: Final = sum(place << 8 * PFN_SIZE * place for place in range(READ_PFNS))


def one_run(data: bytes) -> Range | None:
    """The range of page numbers that go up or down by one each: the usual inflate, told without
    looking at each. None if they do not.

    data: one to READ_PFNS numbers, together one large number with a digit for each of them.
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


def pages(buffers: Sequence[Buffer], read: ReadMemory) -> Iterable[Named]:
    """The pages of inflate or deflate buffers, in at least one slice.

    Raises RingError where a buffer is not guest memory.
    """
    if len(buffers) == 1:  # the usual request, told without the machinery for all others
        address, length, writable = buffers[0]
        if not writable and 0 < length <= READ_PFNS * PFN_SIZE and not length % PFN_SIZE:
            run = one_run(data := read(address, length))
            ranges = [run] if run else merge_numbers(list(memoryview(data).cast("I")), PFN_SHIFT)
            return (Named(_named(length), ranges),)
    return _pages(buffers, read)


def _pages(buffers: Iterable[Buffer], read: ReadMemory) -> Iterator[Named]:
    found = _Slice()
    for address, length, writable in buffers:
        if found.is_full:
            yield found.named()
            found = _Slice()
        found.looks += 1
        tail = length % PFN_SIZE
        if writable:
            found.refusals.append((Refusal.DIRECTION, length))
            continue
        if tail or not length:
            found.refusals.append((Refusal.ODD_TAIL if tail else Refusal.EMPTY, tail))
        end = address + length - tail
        while address < end:
            if found.is_full:
                yield found.named()
                found = _Slice()
            data = read(address, min(end - address, READ_PFNS * PFN_SIZE))
            found.add(data)
            address += len(data)
    yield found.named()


@dataclass(slots=True)
class _Slice:
    """What was found of a slice's page numbers so far."""

    looks: int = 0
    size: int = 0
    runs: list[Range] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    refusals: list[tuple[str, int]] = field(default_factory=list)

    def add(self, data: bytes) -> None:
        """Page numbers were read."""
        if run := one_run(data):
            self.runs.append(run)
        else:
            self.numbers += memoryview(data).cast("I")
        self.size += _named(len(data))

    @property
    def is_full(self) -> bool:
        return (
            self.looks >= SLICE_BUFFERS
            or self.size >= SLICE_BYTES
            or len(self.numbers) >= SLICE_NUMBERS
        )

    def named(self) -> Named:
        ranges = merge_numbers(self.numbers, PFN_SHIFT)
        if self.runs:
            ranges = merge([*self.runs, *ranges])
        return Named(self.size, ranges, self.refusals)


def page_buffers_size(buffers: Iterable[Buffer]) -> int:
    """Bytes of guest memory that inflate or deflate buffers name, as pages() counts them."""
    return sum([_named(length) for _, length, writable in buffers if not writable])


def _named(length: int) -> int:
    """Bytes of guest memory that a buffer of so many bytes names by page numbers."""
    return length // PFN_SIZE * BALLOON_PAGE_SIZE


def report_size(buffers: Iterable[Buffer]) -> int:
    """Bytes of guest memory that reporting buffers name, as reported() counts them."""
    return sum([length for _, length, writable in buffers if writable])


def reported(buffers: Sequence[Buffer]) -> Iterator[Named]:
    """The ranges of reporting buffers, in at least one slice."""
    for first in range(0, max(len(buffers), 1), SLICE_BUFFERS):
        named = Named()
        ranges: list[Range] = []
        for address, length, writable in buffers[first : first + SLICE_BUFFERS]:
            if writable and length:
                ranges.append((address, address + length))
                named.size += length
            else:
                named.refusals.append((Refusal.DIRECTION if length else Refusal.EMPTY, length))
        named.ranges = merge(ranges)
        yield named

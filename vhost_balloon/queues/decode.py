"""Decodes a request's buffers into the guest ranges that they name. Pure.

Source: virtio specification, "Traditional Memory Balloon Device" and "Message Framing". The
device-readable buffers of an inflate or deflate chain are one array of 32-bit PFNs, which the
driver may cut into descriptors anywhere; the device-writable buffers of a report are the reported
pages themselves.

A chain may name queue size x 2^30 pages, so it is decoded in slices of at most some two
milliseconds each. Ranges are merged within a slice. Chains are decoded together, so that their
ranges merge too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain as joined
from typing import Final

from protocol.virtio_balloon import BALLOON_PAGE_SIZE, PFN_SHIFT, PFN_SIZE
from vhost_balloon.figures.refusal import Refusal
from vhost_balloon.memory.ranges import Range, merge, merge_numbers
from vhost_balloon.queues.virtqueue import Buffer, ReadMemory

READ_PFNS: Final = 512
"""Most PFNs to read at once. Drivers put 256 to 1024 into a request."""

Requests = Sequence[Sequence[Buffer]]
"""The buffers of each chain, in order."""

_READ_BYTES: Final = READ_PFNS * PFN_SIZE

SLICE_BUFFERS: Final = 256
SLICE_NUMBERS: Final = 1024
SLICE_BYTES: Final = 64 << 20
"""A slice ends at this many buffers, PFNs outside runs, or bytes named by PFNs. The last bounds the
huge pages that gathering has to examine."""


@dataclass(slots=True)
class Slice:
    """A bounded part of a request.

    size: bytes of guest memory named, repetitions included. ranges: sorted and disjoint once the
    slice is flushed. refusals: (reason, bytes) for content that names no memory. buffers: how many
    were decoded. numbers: PFNs that are not in ranges yet.
    """

    size: int = 0
    ranges: list[Range] = field(default_factory=list)
    refusals: list[tuple[str, int]] = field(default_factory=list)
    buffers: int = 0
    numbers: list[int] = field(default_factory=list)

    def add_pages(self, data: bytes) -> None:
        """Add at most READ_PFNS PFNs as read from guest memory."""
        if run := one_run(data):
            self.ranges.append(run)
        else:
            self.numbers += memoryview(data).cast("I")
        self.size += _size_of_pages(len(data))

    @property
    def is_full(self) -> bool:
        return (
            self.buffers >= SLICE_BUFFERS
            or self.size >= SLICE_BYTES
            or len(self.numbers) >= SLICE_NUMBERS
        )

    def flush(self) -> Slice:
        """Merge everything that was added into ranges. Returns the slice itself."""
        numbered = merge_numbers(self.numbers, PFN_SHIFT)
        self.ranges = merge([*self.ranges, *numbered]) if self.ranges else numbered
        self.numbers = []
        return self


_SAME: Final = sum(1 << 8 * PFN_SIZE * place for place in range(READ_PFNS))
_RISING: Final = sum(place << 8 * PFN_SIZE * place for place in range(READ_PFNS))


def one_run(data: bytes) -> Range | None:
    """Detects the common case, consecutive PFNs in rising or falling order, without examining each
    one. Returns None for anything else.

    data: one to READ_PFNS PFNs, treated as one large number with a digit for each PFN.
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


def pages(requests: Requests, read: ReadMemory) -> Iterable[Slice]:
    """The pages that inflate or deflate requests name, in at least one slice.

    Raises RingError if a buffer is outside guest memory.
    """
    if len(requests) == 1 and len(requests[0]) == 1:  # a shortcut for the usual request
        address, length, writable = requests[0][0]
        if not writable and 0 < length <= _READ_BYTES and not length % PFN_SIZE:
            run = one_run(data := read(address, length))
            ranges = [run] if run else merge_numbers(list(memoryview(data).cast("I")), PFN_SHIFT)
            return (Slice(_size_of_pages(length), ranges, []),)
    return _pages(requests, read)


def _pages(requests: Requests, read: ReadMemory) -> Iterator[Slice]:
    current = Slice()
    for buffers in requests:
        taken = b""  # read, and not yet added to a slice
        for address, length, writable in buffers:
            if current.is_full:
                yield current.flush()
                current = Slice()
            current.buffers += 1
            if writable:
                current.refusals.append((Refusal.DIRECTION, length))
                continue
            end = address + length
            while address < end:
                if current.is_full:
                    yield current.flush()
                    current = Slice()
                data = read(address, min(end - address, _READ_BYTES - len(taken)))
                address += len(data)
                taken = taken + data if taken else data
                if len(taken) == _READ_BYTES:
                    current.add_pages(taken)
                    taken = b""
        if tail := len(taken) % PFN_SIZE:
            current.refusals.append((Refusal.ODD_TAIL, tail))
            taken = taken[:-tail]
        if taken:
            current.add_pages(taken)
        elif not any(length or writable for _, length, writable in buffers):
            current.refusals.append((Refusal.EMPTY, 0))
    yield current.flush()


def reported(requests: Requests) -> Iterator[Slice]:
    """The memory that reports name, in at least one slice."""
    buffers = list(joined.from_iterable(requests))
    for first in range(0, max(len(buffers), 1), SLICE_BUFFERS):
        size = 0
        ranges: list[Range] = []
        refusals: list[tuple[str, int]] = []
        for address, length, writable in buffers[first : first + SLICE_BUFFERS]:
            if writable and length:
                ranges.append((address, address + length))
                size += length
            else:
                refusals.append((Refusal.DIRECTION if length else Refusal.EMPTY, length))
        yield Slice(size, merge(ranges), refusals)


def pages_size(requests: Requests) -> int:
    """Bytes of guest memory that inflate or deflate requests name: the sum of pages()' sizes."""
    return sum([_size_of_pages(_readable_size(buffers)) for buffers in requests])


def _readable_size(buffers: Iterable[Buffer]) -> int:
    return sum([length for _, length, writable in buffers if not writable])


def reported_size(requests: Requests) -> int:
    """Bytes of guest memory that reports name: the sum of reported()'s sizes."""
    buffers = joined.from_iterable(requests)
    return sum([length for _, length, writable in buffers if writable])


def _size_of_pages(length: int) -> int:
    """Bytes of guest memory that length bytes of PFNs name."""
    return length // PFN_SIZE * BALLOON_PAGE_SIZE

"""From a chain's buffers to the guest ranges that they name. Pure.

Source: virtio specification, "Traditional Memory Balloon Device": inflate and deflate buffers are
arrays of 32-bit PFNs that the device reads; a reporting request's device-writable buffers are
themselves the pages reported.

Whatever a guest names, a step here holds at most MAX_SLICE_PFNS page numbers: one chain may name
queue size x 2^30 of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from protocol.virtio_balloon import BALLOON_PAGE_SIZE, PFN_SHIFT, PFN_SIZE
from vhost_balloon.ranges import Range, merge, merge_numbers
from vhost_balloon.refusal import Refusal
from vhost_balloon.virtqueue import Buffer, ReadMemory

MAX_SLICE_PFNS: Final = 16384


@dataclass(slots=True)
class Named:
    """Ranges that a guest named, merged, and what of the request names nothing usable, by reason.

    size is how many bytes of guest memory the buffers name, counting repetitions.
    """

    size: int = 0
    ranges: list[Range] = field(default_factory=list)
    refusals: list[tuple[str, int]] = field(default_factory=list)

    def refuse(self, reason: str, size: int) -> None:
        self.refusals.append((reason, size))


def pages(buffers: Iterable[Buffer], read: ReadMemory) -> Iterator[Named]:
    """The pages of inflate or deflate buffers, slice by slice; small buffers share a slice.

    Raises RingError where a buffer is not guest memory.
    """
    numbers: list[int] = []
    named = Named()
    for address, length, writable in buffers:
        if writable:
            named.refuse(Refusal.DIRECTION, length)
            continue
        if length < PFN_SIZE:
            named.refuse(Refusal.ODD_TAIL if length else Refusal.EMPTY, length)
            continue
        if length % PFN_SIZE:
            named.refuse(Refusal.ODD_TAIL, length % PFN_SIZE)
        end = address + length - length % PFN_SIZE
        while address < end:
            take = min(end - address, (MAX_SLICE_PFNS - len(numbers)) * PFN_SIZE)
            numbers += memoryview(read(address, take)).cast("I")
            address += take
            if len(numbers) == MAX_SLICE_PFNS:
                yield _slice(named, numbers)
                numbers, named = [], Named()
    yield _slice(named, numbers)


def _slice(named: Named, numbers: list[int]) -> Named:
    named.ranges = merge_numbers(numbers, PFN_SHIFT)
    named.size = len(numbers) * BALLOON_PAGE_SIZE
    return named


def pages_named(length: int) -> int:
    """Bytes of guest memory that length bytes of PFNs name."""
    return length // PFN_SIZE * BALLOON_PAGE_SIZE


def reported(buffers: Iterable[Buffer]) -> Named:
    """The ranges of reporting buffers; adjacent and overlapping ones are merged."""
    named = Named()
    ranges = []
    for address, length, writable in buffers:
        if not length:
            named.refuse(Refusal.EMPTY, 0)
        elif not writable:
            named.refuse(Refusal.DIRECTION, length)
        else:
            ranges.append((address, address + length))
            named.size += length
    named.ranges = merge(ranges)
    return named

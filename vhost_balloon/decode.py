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
    """What a guest named: page numbers, or ranges; and what of the request names nothing usable.

    size is how many bytes of guest memory the buffers name, counting repetitions. Merging is the
    costly part, and is done when ranges are first asked for.
    """

    size: int = 0
    numbers: list[int] = field(default_factory=list)
    named_ranges: list[Range] = field(default_factory=list)
    refusals: list[tuple[str, int]] = field(default_factory=list)
    _merged: list[Range] | None = None

    @property
    def ranges(self) -> list[Range]:
        """All of it as ranges, sorted and disjoint."""
        if self._merged is None:
            pages = merge_numbers(self.numbers, PFN_SHIFT)
            self._merged = merge(self.named_ranges) if self.named_ranges else pages
        return self._merged

    def refuse(self, reason: str, size: int) -> None:
        self.refusals.append((reason, size))


def pages(buffers: Iterable[Buffer], read: ReadMemory) -> Iterator[Named]:
    """The pages of inflate or deflate buffers, slice by slice; small buffers share a slice.

    Raises RingError where a buffer is not guest memory.
    """
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
            take = min(end - address, (MAX_SLICE_PFNS - len(named.numbers)) * PFN_SIZE)
            named.numbers += memoryview(read(address, take)).cast("I")
            named.size += take // PFN_SIZE * BALLOON_PAGE_SIZE
            address += take
            if len(named.numbers) == MAX_SLICE_PFNS:
                yield named
                named = Named()
    yield named


def page_buffers_size(buffers: Iterable[Buffer]) -> int:
    """Bytes of guest memory that inflate or deflate buffers name, as pages() counts them."""
    pfns = sum(length // PFN_SIZE for _, length, writable in buffers if not writable)
    return pfns * BALLOON_PAGE_SIZE


def reported(buffers: Iterable[Buffer]) -> Named:
    """The ranges of reporting buffers; adjacent and overlapping ones are merged."""
    named = Named()
    for address, length, writable in buffers:
        if not length:
            named.refuse(Refusal.EMPTY, 0)
        elif not writable:
            named.refuse(Refusal.DIRECTION, length)
        else:
            named.named_ranges.append((address, address + length))
            named.size += length
    return named

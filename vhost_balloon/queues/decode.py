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
from functools import lru_cache
from itertools import chain as joined
from typing import Final, NamedTuple

from protocol.virtio_balloon import BALLOON_PAGE_SIZE, PFN_SIZE
from vhost_balloon.figures.refusal import Refusal
from vhost_balloon.memory.ranges import Range, merge
from vhost_balloon.memory.vector import RangeVector, page_vector
from vhost_balloon.queues.virtqueue import Buffer, ReadMemory

READ_PFNS: Final = 512
"""Most PFNs to read at once. Drivers put 256 to 1024 into a request."""

Requests = Sequence[Sequence[Buffer]]
"""The buffers of each chain, in order."""

_READ_BYTES: Final = READ_PFNS * PFN_SIZE

SLICE_BUFFERS: Final = 256
SLICE_NUMBERS: Final = 8192
SLICE_BYTES: Final = 64 << 20
"""A slice ends at this many buffers, PFNs outside runs, or bytes named by PFNs. The last bounds the
huge pages that gathering has to examine."""
GATHERED_NUMBERS: Final = 1024
"""Instead of SLICE_NUMBERS where pages are gathered, which takes some 2 us for each."""


class Slice(NamedTuple):
    """A bounded part of a request.

    size: bytes of guest memory named, repetitions included. ranges: what was named. refusals:
    (reason, bytes) for content that names no memory.
    """

    size: int
    ranges: RangeVector
    refusals: Sequence[tuple[str, int]] = ()


class _Pages:
    """A slice of PFNs while it is decoded. buffers: how many were. most: PFNs outside runs."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.size = 0
        self.refusals: list[tuple[str, int]] = []
        self.buffers = 0
        self._runs: list[Range] = []
        self._numbers: list[int] = []

    def add(self, data: bytes) -> None:
        """Add at most READ_PFNS PFNs as read from guest memory."""
        self.size += _size_of_pages(len(data))
        self._add(data)

    def _add(self, data: bytes) -> None:
        """Tell runs by halving: Linux takes blocks of pages from its free lists, so its requests
        often are two or three runs."""
        if run := one_run(data):
            self._runs.append(run)
        elif len(data) > _SHORT:
            half = len(data) // 2 & -PFN_SIZE
            self._add(data[:half])
            self._add(data[half:])
        else:
            self._numbers += memoryview(data).cast("I")

    @property
    def is_full(self) -> bool:
        return (
            self.buffers >= SLICE_BUFFERS
            or self.size >= SLICE_BYTES
            or len(self._numbers) + len(self._runs) >= self._most
        )

    def slice(self) -> Slice:
        """Merge everything that was added."""
        return Slice(self.size, page_vector(self._numbers, self._runs), self.refusals)


_SHORT: Final = 64 * PFN_SIZE
"""Bytes of PFNs whose parts are not worth a look for runs."""

_SAME: Final = sum(1 << 8 * PFN_SIZE * place for place in range(READ_PFNS))
_RISING: Final = sum(place << 8 * PFN_SIZE * place for place in range(READ_PFNS))


@lru_cache(maxsize=8)  # a driver's requests have few lengths
def _digits(count: int) -> tuple[int, int]:
    """The lowest count digits of _SAME and _RISING."""
    mask = (1 << 8 * PFN_SIZE * count) - 1
    return _SAME & mask, _RISING & mask


def one_run(data: bytes) -> Range | None:
    """Detects the common case, consecutive PFNs in rising or falling order, without examining each
    one. Returns the lowest and the one after the highest, or None for anything else.

    data: one to READ_PFNS PFNs, treated as one large number with a digit for each PFN.
    """
    count = len(data) // PFN_SIZE
    first = int.from_bytes(data[:PFN_SIZE], "little")
    last = int.from_bytes(data[-PFN_SIZE:], "little")
    if abs(last - first) != count - 1:
        return None
    same, rising = _digits(count)
    number = int.from_bytes(data, "little")
    if last >= first:
        return (first, last + 1) if number == first * same + rising else None
    return (last, first + 1) if number == first * same - rising else None


def pages(requests: Requests, read: ReadMemory, *, gathered: bool = False) -> Iterable[Slice]:
    """The pages that inflate or deflate requests name, in at least one slice.

    gathered: they may be gathered (see GATHERED_NUMBERS). Raises RingError if a buffer is outside
    guest memory.
    """
    most = GATHERED_NUMBERS if gathered else SLICE_NUMBERS
    if len(requests) != 1 or not _is_usual(requests[0]):
        return _pages(requests, read, most)
    address, length, _ = requests[0][0]
    found = _Pages(most)
    found.add(read(address, length))
    return (found.slice(),)


def _is_usual(buffers: Sequence[Buffer]) -> bool:
    """Whether a request is a single buffer of whole PFNs that is read at once."""
    if len(buffers) != 1:
        return False
    _, length, writable = buffers[0]
    return not writable and 0 < length <= _READ_BYTES and not length % PFN_SIZE


def _pages(requests: Requests, read: ReadMemory, most: int) -> Iterator[Slice]:
    current = _Pages(most)
    for buffers in requests:
        if current.is_full:
            yield current.slice()
            current = _Pages(most)
        if _is_usual(buffers):
            current.buffers += 1
            current.add(read(buffers[0][0], buffers[0][1]))
            continue
        taken = b""  # read, and not yet added to a slice
        for address, length, writable in buffers:
            if current.is_full:
                yield current.slice()
                current = _Pages(most)
            current.buffers += 1
            if writable:
                current.refusals.append((Refusal.DIRECTION, length))
                continue
            end = address + length
            while address < end:
                if current.is_full:
                    yield current.slice()
                    current = _Pages(most)
                data = read(address, min(end - address, _READ_BYTES - len(taken)))
                address += len(data)
                taken = taken + data if taken else data
                if len(taken) == _READ_BYTES:
                    current.add(taken)
                    taken = b""
        if tail := len(taken) % PFN_SIZE:
            current.refusals.append((Refusal.ODD_TAIL, tail))
            taken = taken[:-tail]
        if taken:
            current.add(taken)
        elif not any(length or writable for _, length, writable in buffers):
            current.refusals.append((Refusal.EMPTY, 0))
    yield current.slice()


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
        yield Slice(size, RangeVector.of(merge(ranges)), refusals)


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

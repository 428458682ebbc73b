"""Gathers the host's huge pages from the small pages that a guest gives, request by request. Pure.

A balloon page is 4 KiB. If the host frees memory only in larger pages, a host page can go once all
of its balloon pages are in the balloon. They come in many requests, so most of them were
acknowledged long before the last one comes. Discarding them then is permitted only if
MUST_TELL_HOST was negotiated (the guest asks before it uses a page again), and only until a deflate
names one of them.

The record is a guess about the balloon's content. It is not stored, and it is forgotten whenever it
could be wrong. Forgotten pages are not freed; there is no other consequence.

Addresses are guest addresses in bytes, multiples of 4 KiB. A host page is identified by its start.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from protocol.virtio_balloon import BALLOON_PAGE_SIZE, PFN_SHIFT
from vhost_balloon.figures.statistics import HugePages
from vhost_balloon.memory.ranges import Range

MAX_BITS: Final = 8 << 20
"""Most balloon pages in the partial host pages of a guest: 16,384 host pages of 2 MiB, in some
5 MiB. Beyond that, the oldest host page is forgotten."""

MAX_PAGE: Final = 32 << 20
"""Bytes of the largest host page to gather. A page of 1 GiB has a quarter of a million bits, which
take long to handle, and it never becomes whole: a guest always keeps some of it."""

_LEAST_BITS: Final = 512
"""Least cost of a host page against MAX_BITS: the entry of a small one is larger than its bits."""

MAX_WHOLE: Final = 32768
"""Most whole host pages to remember: 64 GiB of 2 MiB pages, in some 4 MiB. They have been freed,
and are remembered for guests that take a part back and give it again."""


class Grid(NamedTuple):
    """A region's host pages: those of size bytes that lie entirely in it, from start to end."""

    size: int
    start: int
    end: int

    def clip(self, start: int, end: int) -> int:
        """How many bytes of [start, end) lie in these pages."""
        return max(min(end, self.end) - max(start, self.start), 0)

    def pages(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Each host page that [start, end) touches, and the balloon pages in it, as bits."""
        start, end = max(start, self.start), min(end, self.end)
        first = start - (start - self.start) % self.size
        for page in range(first, end, self.size):
            low = (max(start, page) - page) >> PFN_SHIFT
            high = (min(end, page + self.size) - page) >> PFN_SHIFT
            yield page, (1 << high) - (1 << low)


@dataclass(slots=True)
class _Partial:
    size: int
    bits: int = 0


def _cost(size: int) -> int:
    return max(size >> PFN_SHIFT, _LEAST_BITS)


def _all_bits(size: int) -> int:
    """Of a host page of size bytes."""
    return (1 << (size >> PFN_SHIFT)) - 1


class Gathering:
    """The balloon pages of each host page that are known to be in one guest's balloon.

    max_bits, max_whole: see MAX_BITS and MAX_WHOLE.
    """

    def __init__(self, max_bits: int = MAX_BITS, max_whole: int = MAX_WHOLE) -> None:
        self._max_bits = max_bits
        self._max_whole = max_whole
        self._partial: dict[int, _Partial] = {}  # by host page, oldest first
        self._whole: dict[int, int] = {}  # sizes in bytes, by host page, oldest first
        self._cost = 0  # of the partial pages
        self._waiting = 0  # bits set in the partial pages
        self._forgotten = 0  # bits

    def __bool__(self) -> bool:
        """Whether there is anything for a deflate to remove."""
        return bool(self._partial or self._whole)

    def statistics(self) -> HugePages:
        waiting = self._waiting * BALLOON_PAGE_SIZE
        return HugePages(len(self._partial), len(self._whole), waiting)

    def add(self, grid: Grid, ranges: Iterable[Range]) -> list[int]:
        """Balloon pages enter the balloon. Returns the touched host pages that are whole now.

        Pages outside the grid are ignored.
        """
        whole: dict[int, None] = {}
        every = _all_bits(grid.size)
        for start, end in ranges:
            for page, bits in grid.pages(start, end):
                bits |= self._bits(page)
                if bits == every:
                    self._set_whole(page, grid.size)
                    whole[page] = None
                else:
                    self._set_partial(page, grid.size, bits)
        return list(whole)

    def remove(self, grid: Grid, ranges: Iterable[Range]) -> None:
        """Balloon pages leave the balloon: their host pages are no longer whole."""
        for start, end in ranges:
            for page, bits in grid.pages(start, end):
                held = self._bits(page)
                if held & bits:
                    self._set_partial(page, grid.size, held & ~bits)

    def is_whole(self, page: int) -> bool:
        """Whether all of a host page is in the balloon, so that it may be discarded now."""
        return page in self._whole

    def clear(self) -> None:
        """Forget everything."""
        self._forgotten += self._waiting
        self._partial.clear()
        self._whole.clear()
        self._cost = self._waiting = 0

    def forgotten(self) -> int:
        """Bytes of waiting pages that were forgotten since the last call."""
        pages, self._forgotten = self._forgotten, 0
        return pages * BALLOON_PAGE_SIZE

    def _bits(self, page: int) -> int:
        if page in self._whole:
            return _all_bits(self._whole[page])
        return self._partial[page].bits if page in self._partial else 0

    def _drop(self, page: int) -> int:
        """Drop a partial page. Returns how many of its bits were set."""
        partial = self._partial.pop(page)
        count = partial.bits.bit_count()
        self._cost -= _cost(partial.size)
        self._waiting -= count
        return count

    def _set_whole(self, page: int, size: int) -> None:
        if page in self._partial:
            self._drop(page)
        self._whole[page] = size
        if len(self._whole) > self._max_whole:
            del self._whole[next(iter(self._whole))]

    def _set_partial(self, page: int, size: int, bits: int) -> None:
        self._whole.pop(page, None)
        if not bits:
            if page in self._partial:
                self._drop(page)
            return
        if page not in self._partial:
            self._partial[page] = _Partial(size)
            self._cost += _cost(size)
        partial = self._partial[page]
        self._waiting += bits.bit_count() - partial.bits.bit_count()
        partial.bits = bits
        while self._cost > self._max_bits:
            self._forgotten += self._drop(next(iter(self._partial)))

"""A guest's page allocator, reduced to the behaviour that a balloon device can see.

Free memory is a sorted list of extents. Wholly free blocks of 4 MiB can be reported. A block stays
reported until a part of it is used, like Linux's PageReported flag. Applications take memory from
the bottom and the balloon from the top. Extents never cross the end of a RAM region.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import Final

BLOCK_SIZE: Final = 4 << 20
"""Linux's largest buddy block on x86 (order 10), the unit of free page reporting."""

Extent = tuple[int, int]
"""Guest address and length in bytes, both page-aligned."""


class GuestOutOfMemory(Exception):
    """The guest has fewer free pages than were asked for."""


class PageAllocator:
    """Free extents of guest memory."""

    def __init__(self, extents: Iterable[Extent]) -> None:
        """Start with all `extents` free and unreported. Each is one region."""
        self._regions = sorted(extents)
        self._free = list(self._regions)
        self._reported: set[int] = set()

    @property
    def free(self) -> int:
        """Free bytes."""
        return sum(length for _, length in self._free)

    @property
    def reported(self) -> int:
        """Bytes of free blocks that were reported."""
        return len(self._reported) * BLOCK_SIZE

    @property
    def free_extents(self) -> list[Extent]:
        """The free extents in ascending order."""
        return list(self._free)

    def add_region(self, address: int, length: int) -> None:
        """Add hot-plugged memory."""
        bisect.insort(self._regions, (address, length))
        bisect.insort(self._free, (address, length))

    def take(self, length: int, *, from_top: bool = False) -> list[Extent]:
        """Take `length` bytes, from the bottom (extents ascend) or the top (they descend).

        Raises:
            GuestOutOfMemory: less is free. Nothing was taken.
        """
        if length > self.free:
            raise GuestOutOfMemory(f"{length} bytes are wanted, {self.free} are free")
        taken: list[Extent] = []
        while length:
            position = -1 if from_top else 0
            address, size = self._free.pop(position)
            part = min(length, size)
            if part < size:
                rest = (address, size - part) if from_top else (address + part, size - part)
                self._free.insert(len(self._free) if from_top else 0, rest)
            taken.append((address + size - part if from_top else address, part))
            length -= part
        for extent in taken:
            self._forget_reports(extent)
        return taken

    def take_block(self, address: int) -> Extent:
        """Take one free block, as Linux does while the device processes its report."""
        position = bisect.bisect_right(self._free, (address, 1 << 64)) - 1
        start, size = self._free.pop(position)
        end = start + size
        rests = [(start, address - start), (address + BLOCK_SIZE, end - address - BLOCK_SIZE)]
        self._free[position:position] = [rest for rest in rests if rest[1]]
        self._forget_reports((address, BLOCK_SIZE))
        return address, BLOCK_SIZE

    def give(self, address: int, length: int, *, reported: bool = False) -> None:
        """Free an extent. `reported`: it is a block that was reported."""
        position = bisect.bisect(self._free, (address, length))
        start, end = address, address + length
        if position < len(self._free) and self._joins(end, self._free[position][0]):
            end += self._free.pop(position)[1]
        if position and self._joins(sum(self._free[position - 1]), start):
            position -= 1
            start = self._free.pop(position)[0]
        self._free.insert(position, (start, end - start))
        if reported:
            self._reported.add(address)

    def unreported_blocks(self) -> list[int]:
        """Return the addresses of free blocks that were not reported, the highest first."""
        blocks = []
        for address, length in reversed(self._free):
            first = -(-address // BLOCK_SIZE) * BLOCK_SIZE
            last = (address + length) // BLOCK_SIZE * BLOCK_SIZE
            candidates = range(last - BLOCK_SIZE, first - BLOCK_SIZE, -BLOCK_SIZE)
            blocks += [block for block in candidates if block not in self._reported]
        return blocks

    def _joins(self, end: int, start: int) -> bool:
        """Whether two extents touch inside one region."""
        return end == start and not any(start == region for region, _ in self._regions)

    def _forget_reports(self, extent: Extent) -> None:
        if not self._reported:
            return
        address, length = extent
        first = address // BLOCK_SIZE * BLOCK_SIZE
        self._reported.difference_update(range(first, address + length, BLOCK_SIZE))


def pop_extents(extents: list[Extent], length: int) -> list[Extent]:
    """Remove up to `length` bytes from the end of a list of extents and return them."""
    taken: list[Extent] = []
    while length and extents:
        address, size = extents.pop()
        part = min(length, size)
        if part < size:
            extents.append((address + part, size - part))
        taken.append((address, part))
        length -= part
    return taken

"""All memory that the front end shares of one guest: finds regions by address, and reads them.

Only rings are read and written through the mapping (see MappedRegion.view). Everything else is read
with pread, which allocates nothing in a hole and cannot raise SIGBUS.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from vhost_balloon.errors import FrontEndError, RingError, RingErrorReason
from vhost_balloon.figures.statistics import RegionStatistics
from vhost_balloon.memory.gathering import Grid
from vhost_balloon.memory.region import GuestRegion, MappedRegion
from vhost_balloon.memory.vector import RangeVector


@dataclass(slots=True)
class GuestMemory:
    """All regions of one guest, sorted by guest address. Unchanged while rings run."""

    regions: list[GuestRegion] = field(default_factory=list)
    has_grids: bool = False
    """Whether any region has host pages larger than balloon pages."""
    _starts: list[int] = field(default_factory=list)

    def files(self) -> dict[int, tuple[int, int]]:
        """Identities of the regions' files, by guest address; without untouched regions."""
        return {held.guest_start: held.inode for held in self.regions if held.inode is not None}

    def add(self, mapped: GuestRegion) -> None:
        self.replace([*self.regions, mapped])

    def remove(self, mapped: GuestRegion) -> None:
        self.replace([other for other in self.regions if other is not mapped])

    def replace(self, regions: Iterable[GuestRegion]) -> None:
        self.regions = sorted(regions, key=lambda mapped: mapped.guest_start)
        self._starts = [mapped.guest_start for mapped in self.regions]
        self.has_grids = any(mapped.grid is not None for mapped in self.regions)

    def close(self) -> None:
        for mapped in self.regions:
            mapped.close()
        self.replace([])

    def unmap(self) -> None:
        """Unmap all regions. The caller owns their descriptors again."""
        for mapped in self.regions:
            mapped.unmap()
        self.replace([])

    def statistics(self) -> tuple[RegionStatistics, ...]:
        return tuple(mapped.statistics() for mapped in self.regions)

    def resident(self) -> int:
        """Bytes that the host spends on the regions' files, RAM and swap; each file counts once."""
        blocks = {}
        for mapped in self.regions:
            if isinstance(mapped, MappedRegion):
                with suppress(OSError):  # its file system may be gone
                    blocks[mapped.inode] = os.fstat(mapped.fd.fileno()).st_blocks
        return sum(blocks.values()) * 512

    def find_user(self, address: int, length: int) -> tuple[MappedRegion, int]:
        """The region that holds an entire user address range, and the range's offset in it.

        Raises FrontEndError if there is none.
        """
        for mapped in self.regions:
            offset = address - mapped.region.user_address
            if offset >= 0 and offset + length <= mapped.region.size:
                if isinstance(mapped, MappedRegion):
                    return mapped, offset
                raise FrontEndError(f"user address {address:#x} is in a region that is untouched")
        raise FrontEndError(f"user address {address:#x} is outside memory")

    def _find_guest(self, address: int) -> GuestRegion | None:
        position = bisect_right(self._starts, address) - 1
        if position >= 0 and address < self.regions[position].guest_end:
            return self.regions[position]
        return None

    def read(self, address: int, length: int) -> bytes:
        """Copy guest memory. Raises RingError if any of it is outside memory."""
        data = b""
        while len(data) < length:  # usually once; it may cross regions
            data += self._read_some(address + len(data), length - len(data))
        return data

    def _read_some(self, address: int, length: int) -> bytes:
        mapped = self._find_guest(address)
        if mapped is None:
            raise RingError(RingErrorReason.BUFFER, f"buffer at {address:#x} is outside memory")
        take = min(length, mapped.guest_end - address)
        return self._pread(mapped, take, address + mapped.to_file)

    def _pread(self, mapped: GuestRegion, length: int, offset: int) -> bytes:
        if not isinstance(mapped, MappedRegion):
            raise RingError(RingErrorReason.MEMORY, "buffer is in a region that is untouched")
        try:
            part = os.pread(mapped.fd.fileno(), length, offset)
        except OSError as error:
            raise RingError(
                RingErrorReason.MEMORY, f"memory cannot be read: {error.strerror}"
            ) from None
        if not part:
            raise RingError(RingErrorReason.MEMORY, "memory file was truncated")
        return part

    def inside(self, ranges: RangeVector) -> int:
        """Bytes of ranges that are guest memory."""
        return sum([inside.total() for _, inside in self.by_region(ranges)])

    def gridded(self, ranges: RangeVector) -> Iterator[tuple[Grid, RangeVector]]:
        """The parts of ranges in regions whose host pages are larger than balloon pages."""
        for mapped, inside in self.by_region(ranges):
            if mapped.grid is not None:
                yield mapped.grid, inside

    def by_region(self, ranges: RangeVector) -> Iterable[tuple[GuestRegion, RangeVector]]:
        """The parts of ranges that lie in regions, in order. Consecutive ranges of one region come
        together."""
        if not ranges:
            return ()
        mapped = self._find_guest(ranges.start)
        if mapped is not None and ranges.end <= mapped.guest_end:
            return ((mapped, ranges),)
        return self._cut_by_region(ranges)

    def _cut_by_region(self, ranges: RangeVector) -> Iterator[tuple[GuestRegion, RangeVector]]:
        first = 0
        while first < len(ranges):
            one = ranges.part(first, first + 1)
            start = one.start
            position = bisect_right(self._starts, start)
            mapped = self.regions[position - 1] if position else None
            if mapped is not None and start < mapped.guest_end:
                limit = mapped.guest_end
            elif position == len(self.regions):
                return  # all following ranges are outside, too
            else:
                mapped, limit = None, self._starts[position]
            stop = ranges.ending_by(limit)
            if stop == first:
                yield from self._cut(start, one.end)
                stop += 1
            elif mapped is not None:
                yield mapped, ranges.part(first, stop)
            first = stop

    def _cut(self, start: int, end: int) -> Iterator[tuple[GuestRegion, RangeVector]]:
        """The parts of [start, end) that lie in regions, in order."""
        position = max(bisect_right(self._starts, start) - 1, 0)
        while position < len(self.regions) and self._starts[position] < end:
            mapped = self.regions[position]
            low, high = max(start, mapped.guest_start), min(end, mapped.guest_end)
            if low < high:
                yield mapped, RangeVector.of([(low, high)])
            position += 1

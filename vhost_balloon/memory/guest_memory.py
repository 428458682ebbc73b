"""The guest's memory as the front end shares it: regions, their mappings and what backs them.

This module alone makes and releases views of guest memory. Only rings are read and written
through the mapping; everything else is read with pread, which allocates nothing in a hole and
cannot raise SIGBUS. Mappings are MAP_NORESERVE: a plain mapping of a hugetlb file would reserve
its holes again, or fail where the pool is empty.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from vhost_balloon.errors import FrontEndError, RingError, RingErrorReason
from vhost_balloon.figures.discard_policy import DiscardPolicy
from vhost_balloon.figures.refusal import Refusal
from vhost_balloon.figures.statistics import RegionStatistics
from vhost_balloon.memory.gathering import Gathering, Grid
from vhost_balloon.memory.ranges import Range, align_inward, subtract, total
from vhost_balloon.memory.region import MappedRegion, Part, refusal


@dataclass(slots=True)
class GuestMemory:
    """All regions of one guest, sorted by guest address. Immutable while rings run."""

    regions: list[MappedRegion] = field(default_factory=list)
    has_grids: bool = False
    """Whether balloon pages make up larger pages of the host's anywhere."""
    _starts: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of guest memory."""
        return sum(mapped.region.size for mapped in self.regions)

    def add(self, mapped: MappedRegion) -> None:
        self.replace([*self.regions, mapped])

    def remove(self, mapped: MappedRegion) -> None:
        self.replace([other for other in self.regions if other is not mapped])

    def replace(self, regions: Iterable[MappedRegion]) -> None:
        self.regions = sorted(regions, key=lambda mapped: mapped.guest_start)
        self._starts = [mapped.guest_start for mapped in self.regions]
        self.has_grids = any(mapped.grid is not None for mapped in self.regions)

    def close(self) -> None:
        for mapped in self.regions:
            mapped.close()
        self.replace([])

    def unmap(self) -> None:
        """Undo the mappings; the descriptors are the caller's again."""
        for mapped in self.regions:
            mapped.unmap()
        self.replace([])

    def statistics(self) -> tuple[RegionStatistics, ...]:
        return tuple(mapped.statistics() for mapped in self.regions)

    def resident(self) -> int:
        """Bytes that the host spends on the regions' files, each file once (RAM and swap)."""
        blocks = {}
        for mapped in self.regions:
            with suppress(OSError):  # its file system may be gone
                blocks[mapped.inode] = os.fstat(mapped.fd.fileno()).st_blocks
        return sum(blocks.values()) * 512

    def find_user(self, address: int, length: int) -> tuple[MappedRegion, int]:
        """The region that holds all of a user address range, and the offset into it.

        Raises FrontEndError if there is none.
        """
        for mapped in self.regions:
            offset = address - mapped.region.user_address
            if offset >= 0 and offset + length <= mapped.region.size:
                return mapped, offset
        raise FrontEndError(f"user address {address:#x} is outside memory")

    def _find_guest(self, address: int) -> MappedRegion | None:
        position = bisect_right(self._starts, address) - 1
        if position >= 0 and address < self.regions[position].guest_end:
            return self.regions[position]
        return None

    def read(self, address: int, length: int) -> bytes:
        """Copy guest memory out. Raises RingError if any of it is outside memory."""
        parts = []
        while length:
            mapped = self._find_guest(address)
            if mapped is None:
                raise RingError(RingErrorReason.BUFFER, f"buffer at {address:#x} is outside memory")
            take = min(length, mapped.guest_end - address)
            offset = mapped.region.mmap_offset + address - mapped.guest_start
            part = self._pread(mapped, take, offset)
            parts.append(part)
            address += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _pread(self, mapped: MappedRegion, length: int, offset: int) -> bytes:
        try:
            part = os.pread(mapped.fd.fileno(), length, offset)
        except OSError as error:
            raise RingError(
                RingErrorReason.MEMORY, f"memory cannot be read: {error.strerror}"
            ) from None
        if not part:
            raise RingError(RingErrorReason.MEMORY, "memory file was truncated")
        return part

    def inside(self, ranges: list[Range]) -> int:
        """Bytes of ranges (sorted, disjoint) that are guest memory."""
        return sum(total(part) for _, part in self._by_region(ranges))

    def _by_region(self, ranges: list[Range]) -> Iterator[tuple[MappedRegion, list[Range]]]:
        """The parts of ranges that lie in regions, in order, neighbours in a region together."""
        first = 0
        while first < len(ranges):
            start, end = ranges[first]
            position = bisect_right(self._starts, start)
            mapped = self.regions[position - 1] if position else None
            if mapped is not None and start < mapped.guest_end:
                limit = mapped.guest_end
            elif position == len(self.regions):
                return  # nor is any of those that follow
            else:
                mapped, limit = None, self._starts[position]
            if end > limit:
                yield from self._cut(start, end)
                first += 1
                continue
            stop = bisect_left(ranges, (limit,), first + 1)
            if ranges[stop - 1][1] > limit:
                stop -= 1
            if mapped is not None:
                yield mapped, ranges[first:stop]
            first = stop

    def _cut(self, start: int, end: int) -> Iterator[tuple[MappedRegion, list[Range]]]:
        """The parts of [start, end) that lie in regions, in order."""
        position = max(bisect_right(self._starts, start) - 1, 0)
        while position < len(self.regions) and self._starts[position] < end:
            mapped = self.regions[position]
            low, high = max(start, mapped.guest_start), min(end, mapped.guest_end)
            if low < high:
                yield mapped, [(low, high)]
            position += 1

    def gridded(self, ranges: list[Range]) -> Iterator[tuple[Grid, list[Range]]]:
        """The parts of ranges in regions whose pages are larger than balloon pages."""
        for mapped, part in self._by_region(ranges):
            if mapped.grid is not None:
                yield mapped.grid, part

    def resolve(
        self,
        ranges: list[Range],
        protected: list[Range],
        policy: DiscardPolicy,
        gathering: Gathering | None = None,
    ) -> tuple[list[Part], list[tuple[str, int]], int]:
        """Turn guest ranges into what may be discarded, (reason, bytes) of what may not, and how
        many bytes of the ranges are guest memory.

        ranges and protected are sorted and disjoint; protected is never discarded. What is no
        whole page of the host's is refused, or with a gathering, kept there until the rest comes.
        """
        refused: dict[str, int] = {}
        allowed = subtract(ranges, protected)
        outside = left = total(allowed)
        parts: list[Part] = []
        for mapped, part in self._by_region(allowed):
            size = total(part)
            outside -= size
            reason = refusal(policy, mapped.filesystem)
            if reason is None:
                if gathering is None or mapped.grid is None:
                    whole = _whole_pages(mapped, part)
                    gone = size if whole is part else total(whole)
                    size -= gone
                else:
                    whole = _gathered(mapped.grid, part, gathering)
                    gone = mapped.grid.size * len(whole)
                    size -= sum(mapped.grid.clip(start, end) for start, end in part)
                if whole:
                    parts.append(Part(mapped, whole, gone))
                reason = _cut_off_reason(mapped)
            if size:
                refused[reason] = refused.get(reason, 0) + size
        if outside:
            refused[Refusal.OUTSIDE] = outside
        if allowed is ranges:
            return parts, list(refused.items()), left - outside
        refused[Refusal.RING] = total(ranges) - left
        return parts, list(refused.items()), self.inside(ranges)


def _whole_pages(mapped: MappedRegion, part: list[Range]) -> list[Range]:
    """The whole backing pages inside guest ranges, which lie in the region: part if that is all."""
    size, to_file = mapped.page_size, mapped.to_file
    bits = to_file
    for start, end in part:
        bits |= start | end
    if bits % size == 0:  # as page numbers are, where pages are not huge
        return part
    found = (align_inward(start + to_file, end + to_file, size) for start, end in part)
    return [(each[0] - to_file, each[1] - to_file) for each in found if each is not None]


def _gathered(grid: Grid, part: list[Range], gathering: Gathering) -> list[Range]:
    """The host pages that guest ranges in the region complete, a range each."""
    return [(page, page + grid.size) for page in sorted(gathering.add(grid, part))]


def _cut_off_reason(mapped: MappedRegion) -> str:
    return Refusal.PARTIAL_HUGE_PAGE if mapped.filesystem.is_hugetlb else Refusal.UNALIGNED

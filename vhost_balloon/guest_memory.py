"""The guest's memory as the front end shares it: regions, their mappings and what backs them.

This module alone makes and releases views of guest memory. Only rings are read and written
through the mapping; everything else is read with pread, which allocates nothing in a hole and
cannot raise SIGBUS. Mappings are MAP_NORESERVE: a plain mapping of a hugetlb file would reserve
its holes again, or fail where the pool is empty.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import mmap
import os
import stat
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from protocol.vhost_user_payloads import Region
from protocol.virtio_balloon import BALLOON_PAGE_SIZE
from vhost_balloon import syscalls
from vhost_balloon.errors import FrontEndError, RingError, RingErrorReason
from vhost_balloon.fds import OwnedFd
from vhost_balloon.gathering import MAX_PAGE, Gathering, Grid
from vhost_balloon.ranges import Range, align_inward, subtract, total
from vhost_balloon.refusal import Refusal
from vhost_balloon.syscalls import Filesystem

ADDRESS_LIMIT: Final = 1 << 64
MAP_NORESERVE: Final = 0x4000  # include/uapi/asm-generic/mman-common.h; in mmap from 3.13 on


class Part(NamedTuple):
    """What of one region may be discarded.

    ranges: of guest addresses in the region, sorted, disjoint, whole pages of the host's; at least
    one. size: their bytes.
    """

    region: MappedRegion
    ranges: list[Range]
    size: int


class DiscardMode(enum.Enum):
    """The operator's word on pinned memory: look for pins, do not look, or discard nothing."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class DiscardPolicy:
    """Which memory may be discarded at all; mode says whether pinned memory may."""

    mode: DiscardMode = DiscardMode.AUTO
    hugetlb: bool = False
    other_filesystems: bool = False

    def refusal(self, filesystem: Filesystem) -> str | None:
        """Why memory on this file system is not discarded, or None if it is."""
        if filesystem.is_hugetlb and not self.hugetlb:
            return Refusal.HUGETLB
        if filesystem.is_other and not self.other_filesystems:
            return Refusal.FILESYSTEM
        return None


@dataclass(frozen=True, slots=True)
class RegionStatistics:
    """One memory region: sizes in bytes, backing is "tmpfs", "hugetlb" or "other"."""

    guest_address: int
    size: int
    page_size: int
    backing: str


class MappedRegion:
    """One region: its file, its mapping, and what the file lives on.

    Raises FrontEndError where the region cannot be served; fd is then left to the caller.
    """

    def __init__(self, region: Region, fd: OwnedFd) -> None:
        check_region(region)
        # Before the size is looked at: a file that is cut and sealed in between counts as unsealed.
        self.shrink_sealed = syscalls.shrink_sealed(fd.fileno())
        try:
            info, self.filesystem = os.fstat(fd.fileno()), syscalls.filesystem(fd.fileno())
        except OSError as error:
            raise FrontEndError(f"memory cannot be looked at: {error.strerror}") from None
        if not stat.S_ISREG(info.st_mode):
            raise FrontEndError("memory descriptor is not a file")
        if region.mmap_offset + region.size > info.st_size:
            raise FrontEndError(
                f"region needs {region.mmap_offset + region.size} bytes of a file of {info.st_size}"
            )
        self.region = region
        self.inode = (info.st_dev, info.st_ino)
        self.page_size = self.filesystem.page_size
        self.grid = self._grid()
        self._mapping, self._mapped_from = self._map(fd)
        self.fd = fd

    def _map(self, fd: OwnedFd) -> tuple[mmap.mmap, int]:
        """Map whole backing pages around the region; munmap of hugetlb needs whole ones too."""
        start = self.region.mmap_offset & -self.page_size
        end = self.region.mmap_offset + self.region.size
        end = (end + self.page_size - 1) & -self.page_size
        # CPython keeps a descriptor of its own for a mapping, unless it is asked not to (3.13).
        extra = {"trackfd": False} if sys.version_info >= (3, 13) else {}
        try:
            mapping = mmap.mmap(
                fd.fileno(),
                end - start,
                flags=mmap.MAP_SHARED | MAP_NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
                offset=start,
                **extra,
            )
        except (OSError, ValueError, OverflowError) as error:
            raise FrontEndError(f"memory cannot be mapped: {error}") from None
        return mapping, start

    def _grid(self) -> Grid | None:
        """The host pages that balloon pages may make up; None where they are the same, say."""
        start, size = self.region.mmap_offset, self.region.size
        whole = align_inward(start, start + size, self.page_size)
        if not BALLOON_PAGE_SIZE < self.page_size <= MAX_PAGE:
            return None
        if self.to_file % BALLOON_PAGE_SIZE or not whole:
            return None
        return Grid(self.page_size, whole[0] - self.to_file, whole[1] - self.to_file)

    @property
    def to_file(self) -> int:
        """What makes a guest address in the region an offset into its file."""
        return self.region.mmap_offset - self.region.guest_address

    @property
    def guest_start(self) -> int:
        return self.region.guest_address

    @property
    def guest_end(self) -> int:
        return self.region.guest_address + self.region.size

    def view(self, offset: int, length: int) -> memoryview:
        """A writable view of length bytes at offset into the region; the borrower releases it.

        The pages are allocated first, so that an empty huge page pool or a full tmpfs is an
        error here and not a SIGBUS later. Raises FrontEndError.
        """
        file_offset = self.region.mmap_offset + offset
        try:
            syscalls.allocate(self.fd.fileno(), file_offset, length)
        except OSError as error:
            # Some file systems cannot; those that guests' memory usually lives on can.
            if error.errno != errno.EOPNOTSUPP or not self.filesystem.is_other:
                raise FrontEndError(f"ring memory cannot be allocated: {error.strerror}") from None
        start = file_offset - self._mapped_from
        with memoryview(self._mapping) as whole:
            return whole[start : start + length]

    @contextmanager
    def borrowed(self) -> Iterator[tuple[int, range]]:
        """Where in this process offset 0 of the file would be, and which offsets are mapped.

        It stays as it is until the end: unmap() raises BufferError meanwhile.
        """
        byte = ctypes.c_char.from_buffer(self._mapping)
        start = self._mapped_from
        try:
            yield ctypes.addressof(byte) - start, range(start, start + len(self._mapping))
        finally:
            del byte

    def unmap(self) -> None:
        """Undo the mapping; the descriptor is the caller's again. Raises BufferError if in use."""
        self._mapping.close()

    def close(self) -> None:
        """Unmap and close. Raises BufferError while a ring still borrows a view."""
        self.unmap()
        self.fd.close()

    def statistics(self) -> RegionStatistics:
        return RegionStatistics(
            self.guest_start, self.region.size, self.page_size, self.filesystem.kind
        )


def check_region(region: Region) -> None:
    """Raise FrontEndError for sizes and addresses that no memory can have."""
    if region.size == 0:
        raise FrontEndError("region of size 0")
    for name in ("guest_address", "user_address", "mmap_offset"):
        if getattr(region, name) + region.size > ADDRESS_LIMIT:
            raise FrontEndError(f"region's {name} and size wrap around")


def _overlap(a: Region, b: Region, name: str) -> bool:
    a_start, b_start = getattr(a, name), getattr(b, name)
    return bool(a_start < b_start + b.size and b_start < a_start + a.size)


def check_disjoint(regions: Iterable[Region], new: Region) -> None:
    """Raise FrontEndError if new shares guest or user addresses with one of regions."""
    for other in regions:
        for name in ("guest_address", "user_address"):
            if _overlap(new, other, name):
                raise FrontEndError(f"regions overlap in their {name}")


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
            reason = policy.refusal(mapped.filesystem)
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

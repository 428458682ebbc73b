"""One region of guest memory: its file and its mapping, and the checks of a region's numbers.

Mappings are MAP_NORESERVE: a plain mapping of a hugetlb file would reserve pages for its holes
again, or fail if the pool is empty.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from protocol.vhost_user_payloads import Region
from protocol.virtio_balloon import BALLOON_PAGE_SIZE
from vhost_balloon.errors import FrontEndError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.figures.discard_policy import DiscardPolicy
from vhost_balloon.figures.refusal import Refusal
from vhost_balloon.figures.statistics import UNTOUCHED, RegionStatistics
from vhost_balloon.memory import syscalls
from vhost_balloon.memory.gathering import MAX_PAGE, Grid
from vhost_balloon.memory.ranges import align_inward, align_outward
from vhost_balloon.memory.syscalls import Filesystem
from vhost_balloon.memory.vector import RangeVector

ADDRESS_LIMIT: Final = 1 << 64

MAP_NORESERVE: Final = 0x4000  # include/uapi/asm-generic/mman-common.h; in mmap from 3.13 on


class Part(NamedTuple):
    """Memory of one region to discard.

    ranges: guest addresses in the region; whole host pages, at least one range. size: their bytes.
    """

    region: MappedRegion
    ranges: RangeVector
    size: int


class GuestRegion(ABC):
    """A region of guest memory, touched or not."""

    grid: Grid | None = None
    """Its host pages to gather from balloon pages, if any."""
    inode: tuple[int, int] | None = None
    """Device and inode of its file, unless it is left alone."""

    def __init__(self, region: Region) -> None:
        """Raises FrontEndError if no memory can have this size and these addresses."""
        _check_region(region)
        self.region = region
        self.guest_start = region.guest_address
        self.guest_end = region.guest_address + region.size
        self.to_file = region.mmap_offset - region.guest_address
        """The number that turns a guest address of the region into an offset in its file."""

    @abstractmethod
    def unmap(self) -> None:
        """Unmap; the caller owns the descriptor again. Raises BufferError if a view is in use."""

    @abstractmethod
    def close(self) -> None:
        """Unmap and close the descriptor. Raises BufferError if a view is in use."""

    @abstractmethod
    def statistics(self) -> RegionStatistics: ...


class UntouchedRegion(GuestRegion):
    """A region that cannot be mapped, or is no memory file, such as a device's. It is left alone:
    it has no descriptor, nothing in it is read or discarded, and no ring can lie in it.

    why: for the operator.
    """

    def __init__(self, region: Region, why: str) -> None:
        super().__init__(region)
        self.why: Final = why

    def unmap(self) -> None:
        """See GuestRegion. Nothing is mapped."""

    def close(self) -> None:
        """See GuestRegion. There is no descriptor."""

    def statistics(self) -> RegionStatistics:
        return RegionStatistics(self.guest_start, self.region.size, 0, UNTOUCHED)


class UnusableError(FrontEndError):
    """The file of a region cannot be used; the region may be sound otherwise."""


_MEMORY: Final = (stat.S_ISREG, stat.S_ISCHR, stat.S_ISBLK)
"""The kinds of files that may be a guest's memory: device DAX is a character device."""


class MappedRegion(GuestRegion):
    """A region with its file, its mapping and its file system. It owns fd.

    Raises UnusableError, or FrontEndError if no memory is like that; the caller then still owns fd.
    """

    def __init__(self, region: Region, fd: OwnedFd) -> None:
        super().__init__(region)
        # Before fstat: a file that is truncated and sealed in between counts as unsealed.
        self.shrink_sealed = syscalls.shrink_sealed(fd.fileno())
        try:
            info, self.filesystem = os.fstat(fd.fileno()), syscalls.filesystem(fd.fileno())
        except OSError as error:
            raise UnusableError(f"memory cannot be examined: {error.strerror}") from None
        if not any(is_kind(info.st_mode) for is_kind in _MEMORY):
            raise FrontEndError("memory descriptor is not a file")
        if not stat.S_ISREG(info.st_mode):
            raise UnusableError("memory of a device")
        if region.mmap_offset + region.size > info.st_size:
            raise UnusableError(
                f"region needs {region.mmap_offset + region.size} bytes of a file of {info.st_size}"
            )
        self.inode = (info.st_dev, info.st_ino)
        self.page_size = self.filesystem.page_size
        self.grid = self._grid()
        self._mapping, self._mapped_from = self._map(fd)
        self.fd = fd

    def _map(self, fd: OwnedFd) -> tuple[mmap.mmap, int]:
        """Map the whole host pages around the region: munmap of hugetlb memory needs whole pages.

        Returns the mapping and the file offset where it starts.
        """
        start, end = align_outward(
            self.region.mmap_offset, self.region.mmap_offset + self.region.size, self.page_size
        )
        # By default, CPython duplicates the descriptor for the mapping (trackfd is new in 3.13).
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
            raise UnusableError(f"memory cannot be mapped: {error}") from None
        return mapping, start

    def _grid(self) -> Grid | None:
        """The host pages to gather from balloon pages. None if they are not larger than those,
        larger than MAX_PAGE, or not aligned to balloon pages."""
        start, size = self.region.mmap_offset, self.region.size
        whole = align_inward(start, start + size, self.page_size)
        if not BALLOON_PAGE_SIZE < self.page_size <= MAX_PAGE:
            return None
        if self.to_file % BALLOON_PAGE_SIZE or not whole:
            return None
        return Grid(self.page_size, whole[0] - self.to_file, whole[1] - self.to_file)

    def view(self, offset: int, length: int) -> memoryview:
        """A writable view of length bytes at offset in the region. The caller releases it.

        The pages are allocated first, so that an empty huge page pool or a full tmpfs is an error
        here rather than a SIGBUS later. Raises FrontEndError.
        """
        file_offset = self.region.mmap_offset + offset
        try:
            syscalls.allocate(self.fd.fileno(), file_offset, length)
        except OSError as error:
            # Some file systems cannot allocate; tmpfs and hugetlbfs can.
            if error.errno != errno.EOPNOTSUPP or not self.filesystem.is_other:
                raise FrontEndError(f"ring memory cannot be allocated: {error.strerror}") from None
        start = file_offset - self._mapped_from
        with memoryview(self._mapping) as whole:
            return whole[start : start + length]

    @contextmanager
    def borrowed(self) -> Iterator[tuple[int, range]]:
        """The address in this process of the file's offset 0, and the range of mapped offsets.

        The mapping stays until the end: unmap() raises BufferError meanwhile.
        """
        byte = ctypes.c_char.from_buffer(self._mapping)
        start = self._mapped_from
        try:
            yield ctypes.addressof(byte) - start, range(start, start + len(self._mapping))
        finally:
            del byte

    def unmap(self) -> None:
        """See GuestRegion."""
        self._mapping.close()

    def close(self) -> None:
        """See GuestRegion."""
        self.unmap()
        self.fd.close()

    def statistics(self) -> RegionStatistics:
        return RegionStatistics(
            self.guest_start, self.region.size, self.page_size, self.filesystem.kind
        )


def accept(region: Region, fd: OwnedFd) -> GuestRegion:
    """Map a region if its file can be used, else leave it alone; fd is taken over.

    Raises FrontEndError, and the caller still owns fd, if no memory can be like that, or if it is
    the RAM at address 0, without which there is no device.
    """
    try:
        return MappedRegion(region, fd)
    except UnusableError as error:
        if region.guest_address == 0:
            raise
        untouched = UntouchedRegion(region, str(error))
    fd.close()
    return untouched


def _check_region(region: Region) -> None:
    """Raise FrontEndError if no memory can have this size and these addresses."""
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


def refusal(policy: DiscardPolicy, filesystem: Filesystem) -> str | None:
    """Why memory on this file system is never discarded, or None."""
    if filesystem.is_hugetlb and not policy.hugetlb:
        return Refusal.HUGETLB
    if filesystem.is_other and not policy.other_filesystems:
        return Refusal.FILESYSTEM
    return None

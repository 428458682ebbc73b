"""TODO."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from protocol.vhost_user_payloads import Region
from protocol.virtio_balloon import BALLOON_PAGE_SIZE
from vhost_balloon.errors import FrontEndError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.figures.discard_policy import DiscardPolicy
from vhost_balloon.figures.refusal import Refusal
from vhost_balloon.figures.statistics import RegionStatistics
from vhost_balloon.memory import syscalls
from vhost_balloon.memory.gathering import MAX_PAGE, Grid
from vhost_balloon.memory.ranges import Range, align_inward
from vhost_balloon.memory.syscalls import Filesystem

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


def refusal(policy: DiscardPolicy, filesystem: Filesystem) -> str | None:
    """Why memory on this file system is not discarded, or None if it is."""
    if filesystem.is_hugetlb and not policy.hugetlb:
        return Refusal.HUGETLB
    if filesystem.is_other and not policy.other_filesystems:
        return Refusal.FILESYSTEM
    return None

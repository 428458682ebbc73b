"""Guest RAM on memfds (or the caller's files), laid out and mapped like QEMU's.

It is real shared memory: holes that the back end punches appear here too, and `GuestRam.resident`
asks the kernel how much of it exists.

Reading a hole through a mapping fills it. So reads use pread, which does not. Only the rings' index
words are read through the mapping, as by a guest's processor.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final

from protocol.vhost_user_payloads import Region
from vhost_balloon.simulator.residency import page_residency

PAGE_SIZE: Final = 4096
MIB: Final = 1 << 20
PCI_HOLE_START: Final = 2 << 30
"""Where RAM below the hole ends on QEMU's q35 if the guest has more than fits."""
PCI_HOLE_END: Final = 4 << 30
USER_ADDRESS: Final = 0x7F5A_0000_0000
"""The pretended address of the first RAM file in the front end; never a guest address."""
USER_ADDRESS_STRIDE: Final = 1 << 43
DRIVER_AREA: Final = MIB
"""Bytes at the start of RAM reserved for rings and the driver's buffers."""

QEMU_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MFD_HUGE_2MB: Final = 21 << 26  # linux/memfd.h; missing in some Pythons
_MAP_NORESERVE: Final = 0x4000  # asm-generic/mman-common.h; in Python's mmap from 3.13 on


def create_memfd(size: int, *, hugetlb: bool = False, sealed: bool = True) -> int:
    """Return a new memfd of `size` bytes, with QEMU's seals if `sealed`.

    Raises:
        OSError: there are no free descriptors, or no support for hugetlb pages.
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    if hugetlb:
        flags |= os.MFD_HUGETLB | _MFD_HUGE_2MB
    fd = os.memfd_create("simulated-guest-ram", flags)
    try:
        os.ftruncate(fd, size)
        if sealed:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, QEMU_SEALS)
    except OSError:
        os.close(fd)
        raise
    return fd


class RamRegion:
    """One region of RAM: a part of a file, mapped shared, at a guest address."""

    def __init__(self, fd: int, region: Region, *, reserve: bool = True) -> None:
        """Take ownership of `fd`.

        reserve: a hugetlb mapping reserves its pages in the pool now, like QEMU's; otherwise
        touching a page may raise SIGBUS.
        """
        self.fd = fd
        self.region = region
        flags = mmap.MAP_SHARED | (0 if reserve else _MAP_NORESERVE)
        try:
            self._map = mmap.mmap(fd, region.size, flags=flags, offset=region.mmap_offset)
        except (OSError, ValueError):
            os.close(fd)
            raise
        self.bytes = memoryview(self._map)
        self.words = self.bytes.cast("H")

    @property
    def start(self) -> int:
        return self.region.guest_address

    @property
    def end(self) -> int:
        return self.region.guest_address + self.region.size

    def residency(self, offset: int, length: int) -> Sequence[bool]:
        """Return for each 4 KiB page whether the file has it in memory."""
        return page_residency(self._map, offset, length)

    def close(self) -> None:
        self.words.release()
        self.bytes.release()
        self._map.close()
        os.close(self.fd)


class GuestRam:
    """A guest's RAM, addressed by guest physical address. A context manager."""

    def __init__(self, regions: Sequence[RamRegion], *, driver_area: int = DRIVER_AREA) -> None:
        """Take ownership of `regions`. The first `driver_area` bytes of the lowest one are for
        `allocate`; the rest is for the guest's page allocator."""
        self.regions = sorted(regions, key=lambda region: region.start)
        first = self.regions[0]
        self.driver_area_end = first.start + min(driver_area, first.region.size)
        self._next_free = first.start + PAGE_SIZE  # never allocate address 0

    @classmethod
    def create(
        cls,
        size: int,
        *,
        guest_address: int = 0,
        hugetlb: bool = False,
        sealed: bool = True,
        reserve: bool = True,
        fd: int | None = None,
        driver_area: int = DRIVER_AREA,
    ) -> GuestRam:
        """Create one region of `size` bytes, on a memfd or on `fd` (owned; at least that large)."""
        if fd is None:
            fd = create_memfd(size, hugetlb=hugetlb, sealed=sealed)
        region = Region(guest_address, size, USER_ADDRESS, 0)
        return cls([RamRegion(fd, region, reserve=reserve)], driver_area=driver_area)

    @classmethod
    def around_pci_hole(
        cls, size: int, *, hole_start: int = PCI_HOLE_START, hole_end: int = PCI_HOLE_END
    ) -> GuestRam:
        """Create two regions of one memfd, below and above a hole, as QEMU does for 4 GiB."""
        fd = create_memfd(size)
        above = Region(hole_end, size - hole_start, USER_ADDRESS + hole_start, hole_start)
        return cls(
            [
                RamRegion(os.dup(fd), above),
                RamRegion(fd, Region(0, hole_start, USER_ADDRESS, 0)),
            ]
        )

    def add(
        self,
        size: int,
        guest_address: int,
        *,
        hugetlb: bool = False,
        sealed: bool = True,
        reserve: bool = True,
        fd: int | None = None,
    ) -> RamRegion:
        """Add a region with a separate file: a DIMM, or another NUMA node's RAM."""
        if fd is None:
            fd = create_memfd(size, hugetlb=hugetlb, sealed=sealed)
        user_address = USER_ADDRESS + len(self.regions) * USER_ADDRESS_STRIDE
        region = RamRegion(fd, Region(guest_address, size, user_address, 0), reserve=reserve)
        self.regions.append(region)
        self.regions.sort(key=lambda region: region.start)
        return region

    def remove(self, region: RamRegion) -> None:
        """Unplug a region and close its file."""
        self.regions.remove(region)
        region.close()

    @property
    def size(self) -> int:
        """The sum of the regions' sizes in bytes: QEMU's -m."""
        return sum(region.region.size for region in self.regions)

    def allocate(self, length: int, alignment: int = 16) -> int:
        """Allocate `length` bytes of the driver area for good. Return their guest address.

        Raises:
            MemoryError: the driver area is full.
        """
        address = -(-self._next_free // alignment) * alignment
        if address + length > self.driver_area_end:
            raise MemoryError(f"no {length} bytes are left of the driver area")
        self._next_free = address + length
        return address

    def pieces(self, address: int, length: int) -> Iterator[tuple[RamRegion, int, int]]:
        """Yield (region, offset into it, bytes) for a range, which may span adjacent regions.

        Raises:
            ValueError: a part of the range is not RAM.
        """
        while length:
            region = self._find(address)
            size = min(length, region.end - address)
            yield region, address - region.start, size
            address += size
            length -= size

    def to_user(self, address: int) -> int:
        """Translate a guest physical address into the front end's user address."""
        region = self._find(address)
        return address - region.start + region.region.user_address

    def read(self, address: int, length: int) -> bytes:
        """Read without filling holes, which read as zeros."""
        return b"".join(
            os.pread(region.fd, size, region.region.mmap_offset + offset)
            for region, offset, size in self.pieces(address, length)
        )

    def write(self, address: int, data: bytes) -> None:
        """Write through the mapping, which makes the pages resident."""
        for region, offset, size in self.pieces(address, len(data)):
            region.bytes[offset : offset + size] = data[:size]
            data = data[size:]

    def read_word(self, address: int) -> int:
        """Read a 16-bit ring word in one access. The address must be even."""
        region = self._find(address)
        return region.words[(address - region.start) >> 1]

    def write_word(self, address: int, value: int) -> None:
        """Write a 16-bit ring word in one access. The address must be even."""
        region = self._find(address)
        region.words[(address - region.start) >> 1] = value

    def resident(self) -> int:
        """Return the bytes that the host spends on this RAM: st_blocks, each inode once."""
        blocks = {}
        for region in self.regions:
            status = os.fstat(region.fd)
            blocks[status.st_dev, status.st_ino] = status.st_blocks
        return sum(blocks.values()) * 512

    def is_resident(self, address: int, length: int = PAGE_SIZE) -> bool:
        """Return whether every page of the page-aligned range is in memory."""
        return all(
            all(region.residency(offset, size))
            for region, offset, size in self.pieces(address, length)
        )

    def resident_in(self, address: int, length: int) -> int:
        """Return the bytes of the page-aligned range that are in memory."""
        return PAGE_SIZE * sum(
            sum(region.residency(offset, size))
            for region, offset, size in self.pieces(address, length)
        )

    def close(self) -> None:
        """Unmap and close every region. A second call does nothing."""
        while self.regions:
            self.regions.pop().close()

    def __enter__(self) -> GuestRam:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _find(self, address: int) -> RamRegion:
        for region in self.regions:
            if region.start <= address < region.end:
                return region
        raise ValueError(f"guest address {address:#x} is not RAM")

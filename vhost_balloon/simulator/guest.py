"""A whole simulated guest: its machine's life cycle, and applications that use memory.

`touch` writes every page with a stamp that `verify` checks. `free` returns pages to the guest's
allocator; they stay resident on the host until the guest reports them. So the figures of a
simulated guest come from the host's kernel.
"""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from protocol.vhost_user import BackendRequest
from protocol.virtio_balloon import StatTag
from vhost_balloon.simulator.allocator import Extent, GuestOutOfMemory, PageAllocator
from vhost_balloon.simulator.driver import BalloonDriver
from vhost_balloon.simulator.front_end import FrontEnd
from vhost_balloon.simulator.memory import MIB, PAGE_SIZE, GuestRam, RamRegion
from vhost_balloon.simulator.options import DriverOptions
from vhost_balloon.simulator.wire import BackEndGone

STEP: Final = MIB
"""Bytes that are touched before other tasks run."""


class SimulatedGuest:
    """A guest with a balloon driver. Its tasks run in the given nursery."""

    def __init__(
        self,
        front_end: FrontEnd,
        nursery: trio.Nursery,
        options: DriverOptions | None = None,
    ) -> None:
        """Send nothing before `boot`."""
        self.front_end = front_end
        self.ram = front_end.ram
        self.options = options or DriverOptions()
        self.allocator = self._fresh_allocator()
        self.driver = BalloonDriver(
            front_end, self.allocator, self.options, self.statistics, self._drop_cache
        )
        self.back_end_gone = trio.Event()
        self._nursery = nursery
        self._used: list[Extent] = []  # memory of applications, the newest last
        self._used_bytes = 0
        self._cache: list[Extent] = []  # pages of files, the oldest first
        self.cached = 0
        """Bytes of files in memory, which are dropped when pages are needed."""
        self._faults = 0
        self._bases: dict[int, int] = {}
        self._attached = False
        self._work: trio.CancelScope | None = None
        self._work_ended = trio.Event()

    # The machine's life.

    async def boot(self) -> None:
        """Start the machine and load the driver. The first time, also connect the device.

        Raises:
            Refused: the back end rejects the memory.
            BackEndGone: it closed the connection.
        """
        if not self._attached:
            await self.front_end.handshake()
            self._attached = True
            self._nursery.start_soon(self._watch_config)
        await self.load()

    async def load(self) -> None:
        """Load the driver."""
        await self.driver.start()
        self._work, self._work_ended = trio.CancelScope(), trio.Event()
        self._nursery.start_soon(self._drive, self._work, self._work_ended)

    async def stop(self) -> dict[int, int]:
        """QEMU's `stop`: halt the guest, then the device. Return the rings' bases."""
        self.driver.running = trio.Event()
        self._bases = await self.front_end.stop_device()
        return self._bases

    async def cont(self) -> None:
        """QEMU's `cont`: continue where `stop` halted."""
        await self.front_end.start_device(
            self.driver.started_rings, features=self.driver.negotiated, bases=self._bases
        )
        self.driver.running.set()

    async def reboot(self) -> None:
        """Reset the machine and boot again. All memory is free, without a report to the host."""
        await self._end_work()
        await self.stop()
        self._used.clear()
        self._cache.clear()
        self._used_bytes = self.cached = 0
        self.allocator = self.driver.allocator = self._fresh_allocator()
        await self.boot()

    async def unload(self) -> None:
        """Unload the driver: empty the balloon, then reset the device."""
        if self._work is not None:
            await self.driver.settle(self._work)
            await self._work_ended.wait()
        await self.driver.empty_balloon()
        await self.front_end.stop_device()

    async def plug(self, size: int, guest_address: int) -> RamRegion:
        """Hot-plug a DIMM: send it to the back end, then give its pages to the guest.

        Raises:
            Refused: the back end rejects it.
        """
        region = self.ram.add(size, guest_address)
        await self.front_end.add_region(region)
        self.allocator.add_region(guest_address, size)
        return region

    # The guest's applications.

    async def touch(self, size: int) -> None:
        """Use `size` more bytes (rounded up to pages) and write every page of them.

        Raises:
            GuestOutOfMemory: less is free, and the balloon gives nothing back. The memory
                touched until then stays in use.
        """
        while size > 0:
            await self.driver.running.wait()
            for address, length in await self._allocate(
                min(STEP, -(-size // PAGE_SIZE) * PAGE_SIZE)
            ):
                self._fill(address, length)
                self._used.append((address, length))
                self._used_bytes += length
                size -= length
            await trio.lowlevel.checkpoint()

    async def free(self, size: int | None = None) -> int:
        """Free `size` bytes, the newest first, or everything. Return the bytes freed."""
        size = self._used_bytes if size is None else min(size, self._used_bytes)
        left = size
        while left > 0:
            await self.driver.running.wait()
            address, length = self._used.pop()
            part = min(length, -(-left // PAGE_SIZE) * PAGE_SIZE)
            if part < length:
                self._used.append((address, length - part))
            self._used_bytes -= part
            self._release(address + length - part, part)
            left -= part
            await trio.lowlevel.checkpoint()
        return size - left

    async def read_files(self, size: int) -> None:
        """Read `size` bytes of files, which stay in the page cache while there is room."""
        while size > 0:
            await self.driver.running.wait()
            if self.allocator.free < STEP:
                self._drop_cache(STEP)
            for address, length in self.allocator.take(min(STEP, self.allocator.free)):
                self._fill(address, length)
                self._cache.append((address, length))
                self.cached += length
            size -= STEP
            await trio.lowlevel.checkpoint()

    async def verify(self) -> int:
        """Read the applications' memory. Return the number of pages that lost their contents."""
        lost = 0
        for address, length in self._used:
            for page in range(address, address + length, PAGE_SIZE):
                lost += self.ram.read(page, PAGE_SIZE) != _stamp(page)
            await trio.lowlevel.checkpoint()
        return lost

    @property
    def in_use(self) -> int:
        """Bytes in use by applications and the driver."""
        return self.ram.driver_area_end - self.ram.regions[0].start + self._used_bytes

    def resident(self) -> int:
        """Return the bytes that the host spends on the guest's RAM."""
        return self.ram.resident()

    def statistics(self) -> dict[int, int]:
        """Return the statistics that the driver sends, by tag."""
        values = dict.fromkeys(map(int, StatTag), 0)
        values[StatTag.MINFLT] = self._faults
        values[StatTag.MEMFREE] = self.allocator.free
        values[StatTag.CACHES] = self.cached
        values[StatTag.AVAIL] = self.allocator.free + self.cached
        values[StatTag.MEMTOT] = self.ram.size
        return values

    # Implementation.

    def _fresh_allocator(self) -> PageAllocator:
        first = self.ram.driver_area_end
        extents = [(max(region.start, first), region.end) for region in self.ram.regions]
        return PageAllocator((start, end - start) for start, end in extents if start < end)

    def _fill(self, address: int, length: int) -> None:
        pages = range(address, address + length, PAGE_SIZE)
        self.ram.write(address, b"".join(map(_stamp, pages)))
        self._faults += len(pages)

    async def _allocate(self, size: int) -> list[Extent]:
        """Take pages for applications, from the balloon if necessary."""
        if self.allocator.free < size:
            await self.driver.wait_reported()  # blocks that the device has come back
            self._drop_cache(size - self.allocator.free)
        while self.allocator.free < size:
            if not await self.driver.release_for_guest():
                raise GuestOutOfMemory(f"{size} bytes are wanted, {self.allocator.free} are free")
        return self.allocator.take(size)

    def _drop_cache(self, size: int) -> None:
        """Free `size` bytes of the page cache, the oldest first, as far as there are any."""
        while size > 0 and self._cache:
            address, length = self._cache.pop(0)
            self.cached -= length
            self._release(address, length)
            size -= length

    def _release(self, address: int, length: int) -> None:
        """Free an extent. A guest that poisons or clears free pages writes them now."""
        if self.options.poison_value is not None:
            self.ram.write(address, struct.pack("<I", self.options.poison_value) * (length // 4))
        self.allocator.give(address, length)

    async def _drive(self, work: trio.CancelScope, ended: trio.Event) -> None:
        try:
            with work:
                await self.driver.run()
        except* BackEndGone:
            self._lose_back_end()
        finally:
            ended.set()

    async def _end_work(self) -> None:
        """Interrupt the driver in the middle of its work, as a reset does."""
        if self._work is not None:
            await self.front_end.cancel(self._work)
            await self._work_ended.wait()

    async def _watch_config(self) -> None:
        """Serve the back-end channel: turn config changes into config interrupts."""
        try:
            while True:
                message = await self.front_end.receive_backend_request()
                if message.request == BackendRequest.CONFIG_CHANGE_MSG:
                    self.driver.config_changed()
        except BackEndGone:
            self._lose_back_end()

    def _lose_back_end(self) -> None:
        self.back_end_gone.set()
        self.driver.back_end_gone()


@asynccontextmanager
async def running_guest(
    path: str | os.PathLike[str],
    ram: GuestRam | int = 64 * MIB,
    options: DriverOptions | None = None,
) -> AsyncIterator[SimulatedGuest]:
    """Boot a guest on the back end at `path`. At the end it disappears as if killed.

    Args:
        path: the back end's socket.
        ram: the guest's RAM, closed at the end, or its size in bytes.
        options: the kind of driver.

    Raises:
        OSError: nothing listens at `path`.
        Refused: the back end rejects the memory.
    """
    with ram if isinstance(ram, GuestRam) else GuestRam.create(ram) as memory:
        async with (
            await FrontEnd.connect(path, memory) as front_end,
            trio.open_nursery() as nursery,
        ):
            guest = SimulatedGuest(front_end, nursery, options)
            await guest.boot()
            yield guest
            nursery.cancel_scope.cancel()


def _stamp(page: int) -> bytes:
    """Return the contents of a used page: its own address, repeated, so that all pages differ."""
    return struct.pack("<Q", page | 1) * (PAGE_SIZE // 8)

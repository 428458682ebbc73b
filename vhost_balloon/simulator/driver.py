"""A balloon driver that behaves towards the device like Linux's virtio_balloon.

Source: Linux drivers/virtio/virtio_balloon.c and mm/page_reporting.c. It keeps the traits that
matter to a device: requests of 256 descending PFNs, one at a time; the config space read and
`actual` written between two requests; one statistics buffer, held by the device; free blocks of
4 MiB reported from the top, 32 in a chain, with a pass every two seconds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final

import trio

from protocol import virtio_balloon as vb
from protocol.virtio_balloon import BalloonFeature, Queue
from protocol.virtio_ring import RingFeature
from vhost_balloon.simulator.allocator import BLOCK_SIZE, Extent, PageAllocator, pop_extents
from vhost_balloon.simulator.front_end import FrontEnd
from vhost_balloon.simulator.options import DriverOptions, queue_indexes
from vhost_balloon.simulator.ring import Buffer, DriverRing, Used
from vhost_balloon.simulator.wire import BackEndGone

PFNS_PER_REQUEST: Final = 256
BLOCKS_PER_REPORT: Final = 32
OUT_OF_PUFF_DELAY: Final = 0.2
"""Seconds to wait when no page is free for the balloon."""

ACTUAL_FIELD: Final = slice(4, 8)
POISON_FIELD: Final = slice(12, 16)
"""The fields of the config space that a driver writes, as slices of it."""


class BalloonDriver:
    """The driver. `start` loads it, also repeatedly; `run` then does its work."""

    def __init__(
        self,
        front_end: FrontEnd,
        allocator: PageAllocator,
        options: DriverOptions,
        statistics: Callable[[], Mapping[int, int]],
        make_room: Callable[[int], None] = lambda size: None,
    ) -> None:
        """statistics: returns the values to send, by tag. make_room: frees so many bytes for the
        balloon, as far as possible.

        Raises:
            MemoryError: the driver area is too small for the rings.
        """
        ram = front_end.ram
        self.allocator = allocator
        self.negotiated = 0
        self.indexes: dict[Queue, int] = {}
        self.rings = {queue: DriverRing(ram, options.queue_size) for queue in Queue}
        self.balloon_pages = 0  # of 4 KiB
        self.running = trio.Event()  # clear while the virtual machine is stopped
        self._front_end = front_end
        self._ram = ram
        self._options = options
        self._statistics = statistics
        self._make_room = make_room
        self._pfns = ram.allocate(PFNS_PER_REQUEST * vb.PFN_SIZE, 4)
        self._stats = ram.allocate(len(options.stat_tags) * vb.STAT.size, 8)
        self._actual = 0  # pages, as last written to the device
        self._balloon: list[Extent] = []  # the pages in it, the newest last
        self._command = ram.allocate(4, 4)
        self._balloon_lock = trio.Lock()
        self._report_lock = trio.Lock()
        self._config_changed = trio.Event()
        self._balloon_changed = trio.Event()
        self._back_end_gone = False

    @property
    def started_rings(self) -> dict[int, DriverRing]:
        """The rings that this driver set up, by queue index."""
        return {index: self.rings[queue] for queue, index in self.indexes.items()}

    # Loading and unloading.

    async def start(self) -> None:
        """Negotiate features, set up the queues, and set DRIVER_OK."""
        offered = self._front_end.features
        known = self._options.features
        if self._options.poison_value is None:
            known &= ~int(BalloonFeature.PAGE_POISON)  # an IntFlag's ~ keeps only named bits
        self.negotiated = offered & known
        self.indexes = queue_indexes(self._options.numbering, offered, self.negotiated)
        for queue in self.indexes:
            self.rings[queue].reset()
        self._balloon, self.balloon_pages, self._actual = [], 0, 0
        self._config_changed = trio.Event()
        self._config_changed.set()  # there may already be a target
        if Queue.STATS in self.indexes:
            self._add_statistics()
        poison = self._options.poison_value
        if self.negotiated & BalloonFeature.PAGE_POISON and poison is not None:
            await self._front_end.set_config(POISON_FIELD, poison.to_bytes(4, "little"))
        await self._front_end.start_device(self.started_rings, features=self.negotiated)
        self.running.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_target)
            if Queue.STATS in self.indexes:
                nursery.start_soon(self._answer_statistics)
            if Queue.REPORTING in self.indexes and self._options.report_delay is not None:
                nursery.start_soon(self._report_regularly, self._options.report_delay)

    async def settle(self, work: trio.CancelScope) -> None:
        """Cancel `work`, the scope of `run`, between two requests."""
        async with self._report_lock, self._balloon_lock:
            await self._front_end.cancel(work)

    async def empty_balloon(self) -> None:
        """Return all pages to the guest and write `actual`, as on unloading."""
        while await self.deflate(PFNS_PER_REQUEST):
            pass
        await self._write_actual()

    def config_changed(self) -> None:
        """Handle the device's config interrupt."""
        self._config_changed.set()

    def back_end_gone(self) -> None:
        """Note that the device will not answer any more."""
        self._back_end_gone = True
        self._note_change()

    # Inflating and deflating.

    async def inflate(self, pages: int) -> int:
        """Put up to `pages`, at most 256, into the balloon; return the number."""
        async with self._balloon_lock:
            pages = min(pages, PFNS_PER_REQUEST)
            self._make_room((pages << vb.PFN_SHIFT) - self.allocator.free)
            pages = min(pages, self.allocator.free >> vb.PFN_SHIFT)
            if pages <= 0:
                return 0
            extents = self.allocator.take(pages << vb.PFN_SHIFT, from_top=True)
            await self._tell_pages(Queue.INFLATE, extents)
            self._balloon += extents
            self.balloon_pages += pages
        self._note_change()
        return pages

    async def deflate(self, pages: int) -> int:
        """Take up to `pages`, at most 256, out of the balloon; return the number."""
        async with self._balloon_lock:
            extents = pop_extents(self._balloon, min(pages, PFNS_PER_REQUEST) << vb.PFN_SHIFT)
            if not extents:
                return 0
            # Tell the device first, whether or not MUST_TELL_HOST was negotiated.
            await self._tell_pages(Queue.DEFLATE, extents)
            for extent in extents:
                self.allocator.give(*extent)
            freed = sum(length for _, length in extents) >> vb.PFN_SHIFT
            self.balloon_pages -= freed
        self._note_change()
        return freed

    async def release_for_guest(self) -> int:
        """Deflate on OOM: free up to 256 pages and write `actual`. Return the number of pages."""
        if not self.negotiated & BalloonFeature.DEFLATE_ON_OOM:
            return 0
        freed = await self.deflate(PFNS_PER_REQUEST)
        if freed:
            await self._write_actual()
        return freed

    async def wait_balloon(self, pages: int) -> None:
        """Wait until exactly `pages` are in the balloon and `actual` says so.

        Raises:
            BackEndGone: the device will not answer any more.
        """
        while not self.balloon_pages == self._actual == pages:
            if self._back_end_gone:
                raise BackEndGone("the back end went away before the balloon had its size")
            await self._balloon_changed.wait()

    # Reporting and hinting.

    async def report(self, requests: int | None = None) -> int:
        """Report free blocks that were not reported yet, in at most `requests` chains.

        Return the number of bytes. The blocks are not free while the device has them.
        """
        total = 0
        most = min(BLOCKS_PER_REPORT, self._options.queue_size)
        async with self._report_lock:
            while requests is None or requests > 0:
                blocks = self.allocator.unreported_blocks()[:most]
                if not blocks:
                    break
                taken = [self.allocator.take_block(block) for block in blocks]
                await self._submit(Queue.REPORTING, [(*extent, True) for extent in taken])
                for address, length in taken:
                    self.allocator.give(address, length, reported=True)
                total += len(taken) * BLOCK_SIZE
                requests = None if requests is None else requests - 1
        return total

    async def wait_reported(self) -> None:
        """Wait until the device has no block."""
        async with self._report_lock:
            pass

    async def hint(self, command_id: int) -> int:
        """Hint all free blocks between `command_id` and STOP. Return the bytes.

        The blocks stay free: the guest may use them at any time, as Linux does with hinted pages
        under memory pressure.
        """
        blocks = self.allocator.unreported_blocks()
        await self._send_command(command_id)
        for block in blocks:
            await self._submit(Queue.FREE_PAGE, [(block, BLOCK_SIZE, True)])
        await self._send_command(vb.CMD_ID_STOP)
        return len(blocks) * BLOCK_SIZE

    # The tasks of `run`.

    async def _follow_target(self) -> None:
        while True:
            await self._config_changed.wait()
            self._config_changed = trio.Event()
            while difference := await self._pages_to_go():
                if difference < 0:
                    await self.deflate(-difference)
                elif not await self.inflate(difference):
                    await trio.sleep(OUT_OF_PUFF_DELAY)
                await self._write_actual()

    async def _answer_statistics(self) -> None:
        ring = self.rings[Queue.STATS]
        while True:
            await ring.wait_used()
            await self.running.wait()
            self._add_statistics()
            ring.kick()

    async def _report_regularly(self, delay: float) -> None:
        while True:
            await trio.sleep(delay)
            # Linux's budget: one chain for each 512 free blocks, rounded up.
            free_blocks = self.allocator.free // BLOCK_SIZE
            await self.report(-(-free_blocks // (BLOCKS_PER_REPORT * 16)))

    # Single steps.

    async def _pages_to_go(self) -> int:
        await self.running.wait()
        target: int = vb.CONFIG_SPACE.unpack(await self._front_end.get_config())[0]
        return target - self.balloon_pages

    async def _write_actual(self) -> None:
        await self.running.wait()
        pages = self.balloon_pages
        await self._front_end.set_config(ACTUAL_FIELD, pages.to_bytes(4, "little"))
        self._actual = pages
        self._note_change()

    async def _tell_pages(self, queue: Queue, extents: list[Extent]) -> None:
        """Send the PFNs of `extents`, each from its highest page down."""
        pfns: list[int] = []
        for address, length in extents:
            first, last = address >> vb.PFN_SHIFT, (address + length) >> vb.PFN_SHIFT
            pfns += range(last - 1, first - 1, -1)
        await self.running.wait()
        self._ram.write(self._pfns, struct.pack(f"<{len(pfns)}I", *pfns))
        await self._submit(queue, [(self._pfns, len(pfns) * vb.PFN_SIZE, False)])

    async def _send_command(self, command_id: int) -> None:
        self._ram.write(self._command, command_id.to_bytes(4, "little"))
        await self._submit(Queue.FREE_PAGE, [(self._command, 4, False)])

    async def _submit(self, queue: Queue, buffers: list[Buffer]) -> Used:
        """Send one request and wait for it. A stopped machine neither sends nor notices."""
        await self.running.wait()
        indirect = len(buffers) > 1 and bool(self.negotiated & RingFeature.INDIRECT_DESC)
        used = await self.rings[queue].submit(buffers, indirect=indirect)
        await self.running.wait()
        return used

    def _add_statistics(self) -> None:
        values = self._statistics()
        tags = [tag for tag in self._options.stat_tags if tag in values]
        data = b"".join(vb.STAT.pack(tag, values[tag]) for tag in tags)
        self._ram.write(self._stats, data)
        self.rings[Queue.STATS].add([(self._stats, len(data), False)])

    def _note_change(self) -> None:
        changed, self._balloon_changed = self._balloon_changed, trio.Event()
        changed.set()

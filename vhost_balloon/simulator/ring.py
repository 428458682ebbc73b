"""The driver's side of a split virtqueue in simulated guest RAM.

A conforming driver uses `add`, `kick` and `wait_used`, or `submit` for all three. The write_* and
publish_* methods are public so that a test can forge a broken ring.

The protocol is the order of stores: descriptors, then the slot in the available ring, then the
index. x86-64 preserves it; indexes are written as single 16-bit stores (GuestRam.write_word).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocol import virtio_ring as vr
from vhost_balloon.simulator.events import EventFd
from vhost_balloon.simulator.memory import PAGE_SIZE, GuestRam

Buffer = tuple[int, int, bool]
"""Guest address, length in bytes, and whether the device may write it (otherwise: read)."""


class RingFull(Exception):
    """The request needs more descriptors than are free."""


@dataclass(frozen=True, slots=True)
class Used:
    """A finished request: the head returned by `add`, and the bytes that the device wrote."""

    head: int
    length: int


class DriverRing:
    """One split virtqueue. The front end sets `kick_event` and `call_event` when it starts it."""

    def __init__(self, ram: GuestRam, size: int = 64) -> None:
        """Allocate the ring's three parts in the driver area of `ram`.

        Raises:
            MemoryError: the driver area is full.
        """
        self.ram = ram
        self.size = size
        self.descriptors = ram.allocate(vr.descriptor_table_size(size), PAGE_SIZE)
        self.available = ram.allocate(vr.available_ring_size(size), vr.AVAILABLE_ALIGNMENT)
        self.used = ram.allocate(vr.used_ring_size(size), vr.USED_ALIGNMENT)
        self.kick_event: EventFd | None = None
        self.call_event: EventFd | None = None
        self._tables: dict[int, tuple[int, int]] = {}
        self.reset()

    def reset(self, index: int = 0) -> None:
        """Reset the ring, as a driver does when it loads.

        index: where both indexes start. A real driver starts at 0; a test may start shortly before
        the wrap at 65536, and must then set the base to match.
        """
        self.ram.write(self.descriptors, bytes(vr.descriptor_table_size(self.size)))
        self.ram.write(self.available, bytes(vr.available_ring_size(self.size)))
        self.ram.write(self.used, bytes(vr.used_ring_size(self.size)))
        self.ram.write_word(self.available + 2, index)
        self.ram.write_word(self.used + 2, index)
        self._seen = index
        self._free = list(range(self.size - 1, -1, -1))
        self._chains: dict[int, list[int]] = {}
        self._finished: list[Used] = []

    # A conforming driver.

    def add(self, buffers: Sequence[Buffer], *, indirect: bool = False) -> int:
        """Publish a chain and return its head. This does not kick the device.

        Raises:
            RingFull: more descriptors are needed than are free.
        """
        slots = self._take(1 if indirect else len(buffers))
        head = slots[0]
        if indirect:
            table, length = self._indirect_table(head, buffers)
            self.write_descriptor(head, table, length, vr.DescriptorFlag.INDIRECT)
        else:
            self._write_chain(self.descriptors, buffers, slots)
        self._chains[head] = slots
        self.publish(head)
        return head

    def kick(self) -> None:
        """Kick the device, unless the ring was not started."""
        if self.kick_event is not None:
            self.kick_event.signal()

    def pop_used(self) -> list[Used]:
        """Return and free the requests finished since the last call, in the device's order."""
        finished, self._finished = self._finished, []
        while self._seen != self.used_index:
            used = self.used_element(self._seen % self.size)
            self._seen = (self._seen + 1) & vr.INDEX_MASK
            self._free.extend(reversed(self._chains.pop(used.head, [])))
            finished.append(used)
        return finished

    async def wait_used(self) -> list[Used]:
        """Wait until at least one request is finished, and return all finished ones."""
        while True:
            if self.call_event is None:
                raise RuntimeError("the ring was never started")
            finished = self.pop_used()
            if finished:
                return finished
            await self.call_event.wait()

    async def submit(self, buffers: Sequence[Buffer], *, indirect: bool = False) -> Used:
        """Add a request, kick, and wait for it."""
        head = self.add(buffers, indirect=indirect)
        self.kick()
        others: list[Used] = []
        try:
            while True:
                finished = await self.wait_used()
                others += [used for used in finished if used.head != head]
                mine = [used for used in finished if used.head == head]
                if mine:
                    return mine[0]
        finally:
            self._finished += others

    # The ring's words, for tests.

    @property
    def available_index(self) -> int:
        return self.ram.read_word(self.available + 2)

    @property
    def used_index(self) -> int:
        return self.ram.read_word(self.used + 2)

    def used_element(self, slot: int) -> Used:
        """Read one element of the used ring."""
        element = self.ram.read(self.used + 4 + slot * vr.USED_ELEMENT_SIZE, 8)
        return Used(*vr.USED_ELEMENT.unpack(element))

    def write_descriptor(
        self, slot: int, address: int, length: int, flags: int = 0, next_slot: int = 0
    ) -> None:
        """Write one descriptor of the ring's table, without checks."""
        data = vr.DESCRIPTOR.pack(address, length, flags, next_slot)
        self.ram.write(self.descriptors + slot * vr.DESCRIPTOR_SIZE, data)

    def publish(self, head: int) -> None:
        """Put `head` into the available ring and increment its index."""
        index = self.available_index
        self.ram.write_word(self.available + 4 + 2 * (index % self.size), head)
        self.publish_index(index + 1)

    def publish_index(self, index: int) -> None:
        """Set the available ring's index (modulo 65536)."""
        self.ram.write_word(self.available + 2, index & vr.INDEX_MASK)

    def _take(self, count: int) -> list[int]:
        if not count:
            raise ValueError("a chain needs at least one buffer")
        if count > len(self._free):
            raise RingFull(f"{count} descriptors are needed, {len(self._free)} are free")
        return [self._free.pop() for _ in range(count)]

    def _write_chain(self, table: int, buffers: Sequence[Buffer], slots: Sequence[int]) -> None:
        for position, (address, length, writable) in enumerate(buffers):
            last = position + 1 == len(buffers)
            flags = int(vr.DescriptorFlag.WRITE) if writable else 0
            flags |= 0 if last else vr.DescriptorFlag.NEXT
            following = 0 if last else slots[position + 1]
            data = vr.DESCRIPTOR.pack(address, length, flags, following)
            self.ram.write(table + slots[position] * vr.DESCRIPTOR_SIZE, data)

    def _indirect_table(self, head: int, buffers: Sequence[Buffer]) -> tuple[int, int]:
        """Return the address and bytes of a table. Each head keeps the memory of its largest."""
        length = vr.descriptor_table_size(len(buffers))
        address, room = self._tables.get(head, (0, 0))
        if room < length:
            address = self.ram.allocate(length, vr.DESCRIPTOR_ALIGNMENT)
            self._tables[head] = (address, length)
        self._write_chain(address, buffers, range(len(buffers)))
        return address, length

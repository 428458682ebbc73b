"""A split ring over plain byte arrays, written by the test as the driver would."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from protocol.virtio_ring import available_ring_size, descriptor_table_size, used_ring_size
from vhost_balloon.errors import RingError, RingErrorReason
from vhost_balloon.queues.virtqueue import Chain, Virtqueue

NEXT, WRITE, INDIRECT = 1, 2, 4
SIZE = 4
TABLE = 0x100
"""Address of the indirect table in Driver.memory."""

Descriptor = tuple[int, int, int, int]


class Driver:
    """Writes descriptors and the available ring; reads the used ring; serves guest memory."""

    def __init__(self, size: int = SIZE, index: int = 0) -> None:
        self.size = size
        self.descriptors = bytearray(descriptor_table_size(size))
        self.available = bytearray(available_ring_size(size))
        self.used = bytearray(used_ring_size(size))
        self.memory = bytearray(4096)
        self.index = index
        self.reads: list[tuple[int, int]] = []
        self.write_index(self.available, index)
        self.write_index(self.used, index)

    def queue(self, base: int | None = None) -> Virtqueue:
        return Virtqueue(
            self.size,
            memoryview(self.descriptors),
            memoryview(self.available),
            memoryview(self.used),
            self.index if base is None else base,
            self.read,
        )

    def read(self, address: int, length: int) -> bytes:
        self.reads.append((address, length))
        if address + length > len(self.memory):
            raise RingError(RingErrorReason.BUFFER, "outside")
        return bytes(self.memory[address : address + length])

    def describe(self, *descriptors: Descriptor) -> None:
        """Write the first descriptors of the table."""
        for position, fields in enumerate(descriptors):
            struct.pack_into("<QIHH", self.descriptors, 16 * position, *fields)

    def describe_indirectly(self, *descriptors: Descriptor) -> None:
        for position, fields in enumerate(descriptors):
            struct.pack_into("<QIHH", self.memory, TABLE + 16 * position, *fields)

    def offer(self, *heads: int) -> None:
        for head in heads:
            struct.pack_into("<H", self.available, 4 + 2 * (self.index % self.size), head)
            self.index = (self.index + 1) & 0xFFFF
        self.write_index(self.available, self.index)

    @staticmethod
    def write_index(ring: bytearray, index: int) -> None:
        struct.pack_into("<H", ring, 2, index)

    def used_elements(self, since: int = 0) -> list[tuple[int, int]]:
        """(head, written) of all published elements, starting at index since."""
        flags, index = struct.unpack_from("<HH", self.used)
        assert flags == 0
        count = (index - since) & 0xFFFF
        return [
            struct.unpack_from("<II", self.used, 4 + 8 * ((since + i) % self.size))
            for i in range(count)
        ]


def heads(chains: Iterable[Chain | None]) -> list[int]:
    return [chain.head for chain in chains if chain is not None]


def pop(queue: Virtqueue) -> Chain | None:
    """Take the next chain, however many steps it takes; None if there is none."""
    return next(filter(None, queue.popping()), None)

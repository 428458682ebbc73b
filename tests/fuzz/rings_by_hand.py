"""Guest memory with five small rings, written by a Source as a hostile driver would."""

from __future__ import annotations

import os
import struct
from typing import Final

from tests.fuzz.source import Source

RING_SIZE: Final = 8
DESCRIPTORS, AVAILABLE, USED = 0, 0x400, 0x800
_FIRST: Final = 0x1000


def ring_offset(index: int) -> int:
    return _FIRST + 0x1000 * index


class DriverMemory:
    """Writes to the memory's file; offsets are guest addresses of the first region."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._indexes = [0] * 8

    def scribble(self, source: Source) -> None:
        """Write arbitrary bytes anywhere."""
        offset, size = source.number(2), source.number()
        os.pwrite(self._fd, source.some(size), offset)

    def offer(self, source: Source) -> None:
        """Write a ring descriptor and make a chain available, both chosen by the source."""
        number, slot = source.number() % 5, source.number() % RING_SIZE
        ring = ring_offset(number)
        address, length = source.number(3), source.number(2)
        flags, following = source.number(), source.number() % (RING_SIZE + 1)
        descriptor = struct.pack("<QIHH", address, length, flags & 7, following)
        os.pwrite(self._fd, descriptor, ring + DESCRIPTORS + 16 * slot)
        if flags & 0x80:
            return
        index = self._indexes[number]
        head = struct.pack("<H", slot if flags & 0x40 else source.number() % RING_SIZE)
        os.pwrite(self._fd, head, ring + AVAILABLE + 4 + 2 * (index % RING_SIZE))
        self._indexes[number] = index = (index + 1) & 0xFFFF
        os.pwrite(self._fd, struct.pack("<H", index), ring + AVAILABLE + 2)

"""One value in shared memory that survives the death of its writer at any moment. Pure.

A writer alternates between two slots, each with a checksum; a reader takes the newest valid one. So
there is always the old value or the new one.
"""

from __future__ import annotations

import struct
from typing import Final
from zlib import crc32

_HEAD: Final = struct.Struct("<QII")  # sequence (0: never written), length, checksum
_SEQUENCE: Final = struct.Struct("<Q")
_MASK: Final = 0xFFFFFFFF


class Slots:
    """Two slots in view, which is taken over; either holds up to capacity bytes."""

    def __init__(self, view: memoryview) -> None:
        half = len(view) // 2
        self._view = view
        self._starts = (0, half)
        self.capacity: Final = half - _HEAD.size
        self._sequence, self._next = 0, 0
        newest = self._newest()
        if newest is not None:
            self._sequence, self._next, _ = newest[0], 1 - newest[1], newest[2]

    def load(self) -> bytes | None:
        """The newest valid value, or None if there is none."""
        newest = self._newest()
        return None if newest is None else newest[2]

    @property
    def written(self) -> bool:
        """Whether any value was ever written completely."""
        return any(any(self._view[start : start + _SEQUENCE.size]) for start in self._starts)

    def save(self, data: bytes) -> None:
        """Write a value. Raises ValueError if it is longer than capacity; nothing changes then."""
        if len(data) > self.capacity:
            raise ValueError(f"{len(data)} bytes do not fit a slot of {self.capacity}")
        sequence, start = self._sequence + 1, self._starts[self._next]
        body = start + _HEAD.size
        self._view[body : body + len(data)] = data
        # The sequence comes last: without it the slot counts as never written.
        _HEAD.pack_into(self._view, start, 0, len(data), crc32(data, sequence & _MASK))
        _SEQUENCE.pack_into(self._view, start, sequence)
        self._sequence, self._next = sequence, 1 - self._next

    def release(self) -> None:
        self._view.release()

    def _newest(self) -> tuple[int, int, bytes] | None:
        """Sequence, slot and content of the newest valid value."""
        whole = [(sequence, slot, data) for slot in (0, 1) for sequence, data in self._read(slot)]
        return max(whole, default=None)

    def _read(self, slot: int) -> list[tuple[int, bytes]]:
        start = self._starts[slot]
        sequence, length, checksum = _HEAD.unpack_from(self._view, start)
        if sequence == 0 or length > self.capacity:
            return []
        body = start + _HEAD.size
        data = bytes(self._view[body : body + length])
        return [(sequence, data)] if crc32(data, sequence & _MASK) == checksum else []

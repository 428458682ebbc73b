"""Reads a target's decisions from its input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Source:
    """Consumes bytes from the front; zeros follow their end.

    Each decision takes a fixed number of bytes, so one changed byte changes one decision.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def __bool__(self) -> bool:
        """Whether any bytes are left."""
        return self._position < len(self._data)

    def some(self, size: int) -> bytes:
        """Return the next size bytes, or fewer at the end."""
        part = self._data[self._position : self._position + size]
        self._position += size
        return part

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.some(size), "little")

    def pick(self, values: Sequence[T]) -> T:
        return values[self.number() % len(values)]

    def rarely(self) -> bool:
        """Return True for one byte value in sixteen; False for 0."""
        return self.number() >= 0xF0

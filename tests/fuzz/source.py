"""Reads a target's decisions from its input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Source:
    """Bytes that are used up from the front; behind their end come zeros.

    Each decision takes a fixed number of bytes, so that one changed byte changes one decision.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return self._position < len(self._data)

    def some(self, size: int) -> bytes:
        """The next bytes: size of them, or what is left."""
        part = self._data[self._position : self._position + size]
        self._position += size
        return part

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.some(size), "little")

    def pick(self, values: Sequence[T]) -> T:
        return values[self.number() % len(values)]

    def rarely(self) -> bool:
        """True for one byte in sixteen; 0 is False."""
        return self.number() >= 0xF0

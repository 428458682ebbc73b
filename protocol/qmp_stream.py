"""Splits a QMP client's bytes into requests. No I/O.

Where a request ends:
- It starts at the first byte that is not blank. An object or array ends with its closing bracket,
  without a newline, because QEMU's own Python client sends none.
- A newline always ends it. Anything still open then is an error, and the next line starts afresh.
  (QEMU reads on, so that one lost bracket swallows all following requests.)
- A control character or 0xFF ends it with an error: the specification's way for a client to force
  the parser into a known good state.
- A request that is too long or nested too deeply is refused at once; the rest of its line is
  skipped and never held in memory.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator
from typing import Final

from protocol.qmp import BadRequest, Request, json_error, parse_request

MAX_REQUEST_SIZE: Final = 64 << 10
"""Bytes; the longest request for QMP's balloon commands has fewer than 300."""

MAX_NESTING: Final = 100
"""Brackets open at once. QEMU allows 1024; Python's own parser fails before that."""


class _State(enum.Enum):
    BETWEEN = enum.auto()
    RESET = enum.auto()  # between, after a reset byte: only a bracket starts a request
    OPEN = enum.auto()
    STRING = enum.auto()
    ESCAPE = enum.auto()
    WORD = enum.auto()  # a request that starts without a bracket: only a newline ends it
    SKIP = enum.auto()


_RESET: Final = rb"\x00-\x08\x0b\x0c\x0e-\x1f\xff"
_IS_RESET: Final = re.compile(rb"[" + _RESET + rb"]")
_STOPS: Final = {
    _State.BETWEEN: re.compile(rb"[^ \t\r\n]"),
    _State.RESET: re.compile(rb"[^ \t\r]"),
    _State.OPEN: re.compile(rb"[\[\]{}\"'\n" + _RESET + rb"]"),
    _State.STRING: re.compile(rb"[\\\"'\n" + _RESET + rb"]"),
    _State.ESCAPE: re.compile(rb".", re.DOTALL),
    _State.WORD: re.compile(rb"[\n" + _RESET + rb"]"),
    _State.SKIP: re.compile(rb"[\n" + _RESET + rb"]"),
}
"""The next byte that matters in each state; bytes before it are skipped unread."""

_IDLE: Final = (_State.BETWEEN, _State.RESET, _State.SKIP)
"""States in which nothing is stored."""


class RequestParser:
    """Splits a client's byte stream into requests; accepts any bytes, in any pieces."""

    def __init__(self) -> None:
        self._state = _State.BETWEEN
        self._buffer = bytearray()
        self._depth = 0
        self._quote = b""

    def feed(self, data: bytes) -> Iterator[Request | BadRequest]:
        """Add bytes and yield what they complete. Must be exhausted before the next call."""
        position = 0
        while position < len(data):
            match = _STOPS[self._state].search(data, position)
            end = match.end() if match else len(data)
            room = MAX_REQUEST_SIZE - len(self._buffer)
            if self._state not in _IDLE and end - position > room:
                yield self._refuse(f"request is longer than {MAX_REQUEST_SIZE} bytes")
                position += room
                continue
            if self._state not in _IDLE:
                self._buffer += data[position:end]
            position = end
            if match and (found := self._stop(match[0])) is not None:
                yield found

    def close(self) -> Iterator[Request | BadRequest]:
        """End the stream, and with it the last line."""
        return self.feed(b"\n")

    def _stop(self, byte: bytes) -> Request | BadRequest | None:
        if byte == b"\n":
            return self._end()
        if _IS_RESET.match(byte):
            return self._reset(byte)
        if self._state in (_State.BETWEEN, _State.RESET):
            self._begin(byte)
        elif self._state is _State.OPEN:
            return self._bracket_or_quote(byte)
        elif self._state is _State.ESCAPE:
            self._state = _State.STRING
        elif byte == b"\\":
            self._state = _State.ESCAPE
        elif byte == self._quote:
            self._state = _State.OPEN
        return None

    def _begin(self, byte: bytes) -> None:
        if byte in b"{[":
            self._state, self._depth = _State.OPEN, 1
        else:
            self._state = _State.WORD if self._state is _State.BETWEEN else _State.SKIP
        if self._state is not _State.SKIP:
            self._buffer += byte

    def _bracket_or_quote(self, byte: bytes) -> Request | BadRequest | None:
        if byte in b"\"'":
            self._state, self._quote = _State.STRING, byte
            return None
        self._depth += 1 if byte in b"{[" else -1
        if self._depth > MAX_NESTING:
            return self._refuse("JSON nesting depth limit exceeded")
        return self._end() if self._depth == 0 else None

    def _end(self) -> Request | BadRequest | None:
        text, waiting = self._buffer.rstrip(b"\r\n"), self._state not in _IDLE
        self._buffer.clear()
        self._state = _State.BETWEEN
        return parse_request(bytes(text)) if waiting else None

    def _reset(self, byte: bytes) -> BadRequest | None:
        known = self._state in (_State.RESET, _State.SKIP)  # this error has been answered
        self._buffer.clear()
        self._state = _State.RESET
        return None if known else json_error(f"stray byte 0x{byte[0]:02X}")

    def _refuse(self, text: str) -> BadRequest:
        self._buffer.clear()
        self._state = _State.SKIP
        return BadRequest(text)

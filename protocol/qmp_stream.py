"""Splits a QMP client's bytes into requests as QEMU does. No I/O.

- A request ends where its brackets balance. It may be spread over lines; several may be on one.
- A mistake is answered at once. The rest of its request is skipped, again until the brackets
  balance, or until a byte that is part of no token: 0xFF or a control character is the
  specification's way for a client to force the parser into a known good state.
- A request that is too long or nested too deeply is a mistake like any other. Nothing that is
  skipped is kept.
- A request that is incomplete at the end of the stream is not answered.

Source: QEMU qobject/json-streamer.c; what it answers was measured with QEMU 11.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from protocol.json_lexer import Kind, Lexer, Token
from protocol.json_value import ValueBuilder
from protocol.qmp import BadRequest, Request, check_request

MAX_REQUEST_SIZE: Final = 64 << 10
"""Bytes without blanks; the longest request for QMP's balloon commands has fewer than 300."""

MAX_NESTING: Final = 100
"""Brackets open at once. QEMU allows 1024; Python cannot send an id back that is nested deeper."""

_MAX_SHOWN: Final = 64
"""Bytes of a stray token in an error."""


class RequestParser:
    """Splits a client's byte stream into requests; accepts any bytes, in any pieces."""

    def __init__(self) -> None:
        self._lexer = Lexer(MAX_REQUEST_SIZE)
        self._begin()

    def _begin(self) -> None:
        self._value = ValueBuilder()
        self._size = 0
        self._braces = 0
        self._brackets = 0
        self._is_skipping = False

    def feed(self, data: bytes) -> Iterator[Request | BadRequest]:
        """Add bytes and yield what they complete. Must be exhausted before the next call."""
        for token in self._lexer.feed(data):
            self._count(token)
            if not self._is_skipping and (found := self._push(token)) is not None:
                yield found
            if token.kind is Kind.STRAY or (token.kind is not Kind.LONG and self._is_balanced()):
                self._begin()

    def _count(self, token: Token) -> None:
        self._size += len(token.text)
        if token.kind is Kind.PUNCTUATION:
            self._braces += (token.text == b"{") - (token.text == b"}")
            self._brackets += (token.text == b"[") - (token.text == b"]")

    def _is_balanced(self) -> bool:
        """Also if more are closed than were open."""
        return min(self._braces, self._brackets) < 0 or self._braces == self._brackets == 0

    def _push(self, token: Token) -> Request | BadRequest | None:
        if token.kind is Kind.STRAY:
            shown = token.text[:_MAX_SHOWN].decode("utf-8", "replace")
            return self._json_error(token, f"stray '{shown}'")
        if token.kind is Kind.LONG or self._size > MAX_REQUEST_SIZE:
            return self._refuse(f"request is longer than {MAX_REQUEST_SIZE} bytes")
        if self._braces + self._brackets > MAX_NESTING:
            return self._refuse("JSON nesting depth limit exceeded")
        try:
            is_complete = self._value.push(token)
        except ValueError as mistake:
            return self._json_error(token, str(mistake))
        return check_request(self._value.value) if is_complete else None

    def _json_error(self, token: Token, text: str) -> BadRequest:
        return self._refuse(f"{self._lexer.position(token)}: JSON parse error, {text}")

    def _refuse(self, text: str) -> BadRequest:
        self._is_skipping = True
        self._value = ValueBuilder()
        return BadRequest(text)

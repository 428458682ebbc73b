"""Splits bytes into JSON tokens as QEMU does, in pieces of any size. No I/O.

Extensions over RFC 8259: strings in single quotes, and the escape \\' in strings. Newlines are
blanks. A byte that fits nowhere ends its token as a stray one; what follows is skipped up to a
bracket, a colon, a comma, a control character other than tab, 0xFE or 0xFF, which start afresh.

Source: QEMU qobject/json-lexer.c.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple


class Kind(enum.Enum):
    """The kinds of tokens. LONG comes in addition, while a token grows beyond the limit."""

    PUNCTUATION = enum.auto()
    STRING = enum.auto()
    INTEGER = enum.auto()
    FLOAT = enum.auto()
    KEYWORD = enum.auto()
    STRAY = enum.auto()
    LONG = enum.auto()


class Token(NamedTuple):
    """text: its bytes, quotes included; one more than the limit if it is longer. start: the first
    byte's offset in the stream."""

    kind: Kind
    text: bytes
    start: int


class _State(enum.Enum):
    START = enum.auto()
    RECOVERY = enum.auto()
    DOUBLE = enum.auto()
    DOUBLE_ESCAPE = enum.auto()
    SINGLE = enum.auto()
    SINGLE_ESCAPE = enum.auto()
    SIGN = enum.auto()
    ZERO = enum.auto()
    DIGITS = enum.auto()
    POINT = enum.auto()
    FRACTION = enum.auto()
    EXPONENT = enum.auto()
    EXPONENT_SIGN = enum.auto()
    EXPONENT_DIGITS = enum.auto()
    KEYWORD = enum.auto()


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a state does with the next bytes.

    run: bytes that do not leave it. next: bytes that do, and where to, or which token they
    complete. ends: the token that any other byte ends without being part of it; None: it is stray.
    """

    run: re.Pattern[bytes]
    next: Mapping[int, _State | Kind] = field(default_factory=dict)
    ends: Kind | None = None


def _next(*pairs: tuple[bytes, _State | Kind]) -> Mapping[int, _State | Kind]:
    return {byte: target for characters, target in pairs for byte in characters}


_DIGIT: Final = b"0123456789"
_NONE: Final = re.compile(b"")
_DIGITS: Final = re.compile(b"[0-9]*")
_IN_ESCAPE: Final = bytes(range(0x20, 0xFE))
_E: Final = (b"eE", _State.EXPONENT)

_RULES: Final[Mapping[_State, _Rule]] = {
    _State.START: _Rule(
        re.compile(rb"[ \t\r\n]*"),
        _next(
            (b"{}[]:,", Kind.PUNCTUATION),
            (b'"', _State.DOUBLE),
            (b"'", _State.SINGLE),
            (b"-", _State.SIGN),
            (b"0", _State.ZERO),
            (b"123456789", _State.DIGITS),
            (bytes(range(ord("a"), ord("z") + 1)), _State.KEYWORD),
        ),
    ),
    _State.RECOVERY: _Rule(re.compile(rb"[^\x00-\x08\x0a-\x1f{}\[\]:,\xfe\xff]*")),
    _State.DOUBLE: _Rule(
        re.compile(rb'[^\x00-\x1f"\\\xfe\xff]*'),
        _next((b'"', Kind.STRING), (b"\\", _State.DOUBLE_ESCAPE)),
    ),
    _State.DOUBLE_ESCAPE: _Rule(_NONE, _next((_IN_ESCAPE, _State.DOUBLE))),
    _State.SINGLE: _Rule(
        re.compile(rb"[^\x00-\x1f'\\\xfe\xff]*"),
        _next((b"'", Kind.STRING), (b"\\", _State.SINGLE_ESCAPE)),
    ),
    _State.SINGLE_ESCAPE: _Rule(_NONE, _next((_IN_ESCAPE, _State.SINGLE))),
    _State.SIGN: _Rule(_NONE, _next((b"0", _State.ZERO), (b"123456789", _State.DIGITS))),
    _State.ZERO: _Rule(_NONE, _next((_DIGIT, Kind.STRAY), (b".", _State.POINT)), Kind.INTEGER),
    _State.DIGITS: _Rule(_DIGITS, _next((b".", _State.POINT), _E), Kind.INTEGER),
    _State.POINT: _Rule(_NONE, _next((_DIGIT, _State.FRACTION))),
    _State.FRACTION: _Rule(_DIGITS, _next(_E), Kind.FLOAT),
    _State.EXPONENT: _Rule(
        _NONE, _next((b"+-", _State.EXPONENT_SIGN), (_DIGIT, _State.EXPONENT_DIGITS))
    ),
    _State.EXPONENT_SIGN: _Rule(_NONE, _next((_DIGIT, _State.EXPONENT_DIGITS))),
    _State.EXPONENT_DIGITS: _Rule(_DIGITS, ends=Kind.FLOAT),
    _State.KEYWORD: _Rule(re.compile(b"[a-z]*"), ends=Kind.KEYWORD),
}


class Lexer:
    """Splits a stream into tokens. Keeps at most limit + 1 bytes of the one that is open."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._state = _State.START
        self._text = bytearray()
        self._start = 0
        self._data = b""
        self._offset = 0
        """Of _data, the piece at hand, in the stream."""
        self._lines = 0
        self._line_start = 0
        """The newlines before _data, and the offset after the last of them."""

    def feed(self, data: bytes) -> Iterator[Token]:
        """Add bytes and yield what they complete. Must be exhausted before the next call."""
        self._data, position = data, 0
        while position < len(data):
            rule, run = _RULES[self._state], position
            position += self._run_length(rule, position)
            if self._state in (_State.START, _State.RECOVERY):
                self._start = self._offset + position
            elif self._keep(data[run:position]):
                yield Token(Kind.LONG, b"", self._start)
            if position == len(data):
                break
            if self._state is _State.RECOVERY:
                self._state = _State.START
                continue
            target = rule.next.get(data[position])
            if target is Kind.PUNCTUATION:  # most tokens of a flood: twice as fast this way
                position += 1
                yield Token(target, data[position - 1 : position], self._start)
                continue
            if target is None and rule.ends is not None:
                yield self._token(rule.ends)
                continue
            if self._keep(data[position : position + 1]):
                yield Token(Kind.LONG, b"", self._start)
            position += 1
            if isinstance(target, _State):
                self._state = target
            else:
                yield self._token(target or Kind.STRAY)
        self._count_lines()

    def position(self, token: Token) -> str:
        """LINE:COLUMN of the token that was yielded last, both from 1; columns are bytes."""
        before = self._data[: max(0, token.start - self._offset)]
        line = self._lines + before.count(b"\n")
        start = self._offset + before.rfind(b"\n") + 1 if b"\n" in before else self._line_start
        return f"{line + 1}:{token.start - start + 1}"

    def _run_length(self, rule: _Rule, position: int) -> int:
        match = rule.run.match(self._data, position)
        return match.end() - position if match else 0

    def _keep(self, data: bytes) -> bool:
        """Add bytes to the token. Return whether they exceed the limit, which none did before."""
        room = self._limit + 1 - len(self._text)
        self._text += data[:room]
        return 0 < room <= len(data)

    def _token(self, kind: Kind) -> Token:
        token = Token(kind, bytes(self._text), self._start)
        self._text.clear()
        self._state = _State.RECOVERY if kind is Kind.STRAY else _State.START
        return token

    def _count_lines(self) -> None:
        if b"\n" in self._data:
            self._lines += self._data.count(b"\n")
            self._line_start = self._offset + self._data.rfind(b"\n") + 1
        self._offset += len(self._data)
        self._data = b""

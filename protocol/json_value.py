"""Builds a JSON value from tokens, one at a time, so that a mistake is known at its token. No I/O.

Source: QEMU qobject/json-parser.c; the wording of errors was measured with QEMU 11.1. Wider than
QEMU: integers of any size are exact, and Unicode's noncharacters are allowed. Narrower: a number
beyond a float's range is refused, because QEMU echoes it as inf, which is not JSON.
"""

from __future__ import annotations

import enum
import math
import re
from typing import Any, Final

from protocol.json_lexer import Kind, Token


class _Expected(enum.Enum):
    VALUE = enum.auto()
    VALUE_OR_END = enum.auto()
    KEY = enum.auto()
    KEY_OR_END = enum.auto()
    COLON = enum.auto()
    COMMA_OR_END = enum.auto()


class ValueBuilder:
    """Builds one value.

    value: the result, once push() has returned True.
    """

    def __init__(self) -> None:
        self.value: Any = None
        self._expected = _Expected.VALUE
        self._open: list[list[Any] | dict[str, Any]] = []
        """The arrays and objects around the next token, outermost first."""
        self._keys: list[str] = []
        """The key whose value is open, of each object in _open from which one is."""

    def push(self, token: Token) -> bool:
        """Add a token. Return whether it completes the value. Raises ValueError."""
        match self._expected:
            case _Expected.VALUE | _Expected.VALUE_OR_END:
                self._push_value(token)
            case _Expected.KEY | _Expected.KEY_OR_END:
                self._push_key(token)
            case _Expected.COLON:
                if token.text != b":":
                    raise ValueError("expecting ':'")
                self._expected = _Expected.VALUE
            case _Expected.COMMA_OR_END:
                self._push_separator(token)
        return not self._open

    def _push_value(self, token: Token) -> None:
        if token.text == b"{":
            self._begin({}, _Expected.KEY_OR_END)
        elif token.text == b"[":
            self._begin([], _Expected.VALUE_OR_END)
        elif token.text == b"]" and self._expected is _Expected.VALUE_OR_END:
            self._end()
        else:
            self._add(_scalar(token))

    def _push_key(self, token: Token) -> None:
        if token.text == b"}" and self._expected is _Expected.KEY_OR_END:
            self._end()
        elif token.kind is Kind.STRING:
            self._keys.append(_string(token.text))
            self._expected = _Expected.COLON
        else:
            raise ValueError("expecting key")

    def _push_separator(self, token: Token) -> None:
        is_object = isinstance(self._open[-1], dict)
        if token.text == b",":
            self._expected = _Expected.KEY if is_object else _Expected.VALUE
        elif token.text == (b"}" if is_object else b"]"):
            self._end()
        else:
            raise ValueError(f"expected ',' or '{'}' if is_object else ']'}'")

    def _begin(self, container: list[Any] | dict[str, Any], expected: _Expected) -> None:
        self._add(container)
        self._open.append(container)
        self._expected = expected

    def _end(self) -> None:
        self._open.pop()
        self._expected = _Expected.COMMA_OR_END

    def _add(self, value: Any) -> None:
        if not self._open:
            self.value = value
        elif isinstance(outer := self._open[-1], list):
            outer.append(value)
        else:
            key = self._keys.pop()
            if key in outer:
                raise ValueError("duplicate key")
            outer[key] = value
        self._expected = _Expected.COMMA_OR_END


_KEYWORDS: Final = {b"true": True, b"false": False, b"null": None}


def _scalar(token: Token) -> Any:
    match token.kind:
        case Kind.STRING:
            return _string(token.text)
        case Kind.INTEGER:
            return _integer(token.text)
        case Kind.FLOAT:
            return _float(token.text)
        case Kind.KEYWORD if token.text in _KEYWORDS:
            return _KEYWORDS[token.text]
        case Kind.KEYWORD:
            raise ValueError(f"invalid keyword '{token.text[:40].decode()}'")
        case _:
            raise ValueError("expecting value")


def _integer(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:  # Python refuses thousands of digits: they take quadratic time
        raise ValueError("number out of range") from None


def _float(text: bytes) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("number out of range")
    return value


_ESCAPE: Final = re.compile(
    r"\\u(?P<high>[dD][89abAB][0-9a-fA-F]{2})\\u(?P<low>[dD][c-fC-F][0-9a-fA-F]{2})"
    r"|\\u(?P<code>(?![dD][89a-fA-F])[0-9a-fA-F]{4})"
    r"|(?P<invalid>\\u.{0,4})"
    r"|\\(?P<character>.)"
)
_CHARACTERS: Final = dict(zip("\"'\\/bfnrt", "\"'\\/\b\f\n\r\t", strict=True))


def _string(text: bytes) -> str:
    """A string without its quotes. QEMU's UTF-8 is the modified one, where C0 80 is U+0000."""
    try:
        body = text[1:-1].replace(b"\xc0\x80", b"\0").decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("invalid UTF-8 sequence in string") from None
    return _ESCAPE.sub(_unescape, body)


def _unescape(match: re.Match[str]) -> str:
    if match["invalid"]:
        raise ValueError(f"{match['invalid']} is not a valid Unicode character")
    if match["code"]:
        return chr(int(match["code"], 16))
    if match["high"]:
        return chr(
            0x10000 + ((int(match["high"], 16) & 0x3FF) << 10) + (int(match["low"], 16) & 0x3FF)
        )
    if match["character"] not in _CHARACTERS:
        raise ValueError("invalid escape sequence in string")
    return _CHARACTERS[match["character"]]

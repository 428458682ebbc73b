"""Finds the line of each top-level key of a TOML text, for error messages.

Hand-written because neither tomllib nor tomlkit reports the lines of keys. It finds where
statements (a table's header, or a key with its value) end: at a line end outside strings and
brackets. Each statement is a TOML document by itself, from which tomllib reads the key.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Final, NamedTuple

_TOKEN: Final = re.compile(
    r'"""(?:[^\\]|\\.)*?(?:"{3,5}|\Z)'
    r"|'''.*?(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]|\\[^\n])*"?'
    r"|'[^'\n]*'?"
    r"|#[^\n]*"
    r"|[^\"'#\n\[\]{}]+"
    r"|.",
    re.DOTALL,
)
"""A string, terminated or not, a comment, other text, or one character. Never backtracks far."""


class Statement(NamedTuple):
    """Lines are counted from 1. key: its top-level key; "" if it is part of a table."""

    first_line: int
    last_line: int
    key: str


class Lines:
    """The statements of a text.

    broken: the first line of the first one that tomllib cannot parse by itself, None if there is
    none.
    """

    def __init__(self, text: str) -> None:
        self.broken: int | None = None
        self._first: dict[str, int] = {}
        self._statements: list[Statement] = []
        in_table = False
        for first, last, source in _split(text):
            is_header = source.lstrip().startswith("[")
            in_table = in_table or is_header
            try:
                (key,) = tomllib.loads(source)
            except (ValueError, RecursionError):
                self.broken = self.broken or first
                continue
            if in_table and not is_header:
                key = ""
            self._statements.append(Statement(first, last, key))
            self._first.setdefault(key, first)

    def of(self, key: str) -> int:
        """The line where the key or table first occurs; 1 if it does not."""
        return self._first.get(key, 1)

    def around(self, line: int) -> Statement | None:
        """The statement that this line is part of."""
        for statement in self._statements:
            if statement.first_line <= line <= statement.last_line:
                return statement
        return None


def _split(text: str) -> Iterator[tuple[int, int, str]]:
    """The first and last line and the text of each statement."""
    start = depth = 0
    line = first = 1
    for token in _TOKEN.finditer(text):
        word = token[0]
        depth = max(0, depth + (word in "[{") - (word in "]}"))
        if word == "\n" and depth == 0:
            if _is_statement(text[start : token.end()]):
                yield first, line, text[start : token.end()]
            start, first = token.end(), line + 1
        line += word.count("\n")
    if _is_statement(text[start:]):
        yield first, line, text[start:]


def _is_statement(source: str) -> bool:
    """Whether it is more than blanks and a comment."""
    return source.strip(" \t\r\n")[:1] not in ("", "#")

"""Finds the line of each key of a TOML text, for error messages.

Hand-written because neither tomllib nor tomlkit reports the lines of keys. It finds where
statements (a table's header, or a key with its value) end: at a line end outside strings and
brackets. Each statement is a TOML document by itself, from which tomllib reads the key.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

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


MAX_DEPTH: Final = 8
"""Parts of a key that are looked at: deeper keys count as part of their table."""

Key = tuple[str, ...]
"""A key's or table's path from the top level: ("vm", "web1", "weight")."""


class Statement(NamedTuple):
    """Lines are counted from 1. key: what it gives, with the table that it stands in."""

    first_line: int
    last_line: int
    key: Key


class Lines:
    """The statements of a text.

    broken: the first line of the first one that tomllib cannot parse by itself, None if there is
    none; broken_table: the table that it stands in.
    """

    def __init__(self, text: str) -> None:
        self.broken: int | None = None
        self.broken_table: Key = ()
        self._statements: list[Statement] = []
        table: Key = ()
        for first, last, source in _split(text):
            try:
                key = _key(tomllib.loads(source))
            except (ValueError, RecursionError):
                if self.broken is None:
                    self.broken, self.broken_table = first, table
                continue
            if source.lstrip().startswith("["):
                table = key
            else:
                key = (*table, *key)[:MAX_DEPTH]
            self._statements.append(Statement(first, last, key))

    def of(self, key: Key) -> int:
        """The line where the key, or what is in it, first occurs; else that of the innermost table
        or value around it; 1 if there is none."""
        found = _find(key, self._statements)
        return 1 if found is None else found.first_line

    def around(self, line: int) -> Statement | None:
        """The statement that this line is part of."""
        for statement in self._statements:
            if statement.first_line <= line <= statement.last_line:
                return statement
        return None

    def before(self, later: Statement) -> Statement | None:
        """The earlier statement that gives the same key, or a part of it."""
        earlier = (found for found in self._statements if found.first_line < later.first_line)
        return _find(later.key, earlier)


def _find(key: Key, statements: Iterable[Statement]) -> Statement | None:
    """The first statement that gives the key, or the closest one that gives what it is in."""
    closest: Statement | None = None
    for statement in statements:
        if statement.key[: len(key)] == key[:MAX_DEPTH]:
            return statement
        is_around = statement.key == key[: len(statement.key)]
        if is_around and (closest is None or len(statement.key) > len(closest.key)):
            closest = statement
    return closest


def _key(document: dict[str, Any]) -> Key:
    """The key of a single statement. Raises ValueError for anything else."""
    if len(document) != 1:
        raise ValueError
    key: list[str] = []
    value: object = document
    while isinstance(value, dict) and len(value) == 1 and len(key) < MAX_DEPTH:
        [(part, value)] = value.items()
        key.append(part)
    return tuple(key)


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

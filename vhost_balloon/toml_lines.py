"""On which line of a TOML text something stands: tomllib tells that only of what it cannot parse.

No grammar of our own: a statement (a table's header, or a key and its value) is a TOML document by
itself, and a part of one that ends with a line is none. So tomllib finds where statements end.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

MAX_STATEMENT: Final = 20
MAX_TRIES: Final = 2000
"""Lines of one statement, and lines in all that end none: each is parsed from its statement's start
on, and none of ours needs more than one line."""

KeyPath: TypeAlias = tuple[str, ...]


class Lines:
    """Where each table and key of a text first stands.

    broken: the first line of the first statement that tomllib cannot parse, or that is too much
    (MAX_STATEMENT, MAX_TRIES); nothing behind it is known. None if there is no such statement.
    """

    def __init__(self, text: str) -> None:
        self.broken: int | None = None
        self._found: dict[KeyPath, int] = {}
        table: KeyPath = ()
        for number, source, statement in self._statements(text.split("\n")):
            if source.lstrip().startswith("["):
                table = _header(statement)
                paths = [table[:depth] for depth in range(1, len(table) + 1)]
            else:
                paths = list(_paths(table, statement))
            for path in paths:
                self._found.setdefault(path, number)

    def of(self, path: KeyPath) -> int:
        """The line (from 1) of a table or key, or of the nearest around it that has one."""
        while path and path not in self._found:
            path = path[:-1]
        return self._found[path] if path else 1

    def _statements(self, lines: list[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """Each one's first line, its text, and what it says."""
        start = tries = 0
        while start < len(lines) and tries < MAX_TRIES:
            for end in range(start + 1, min(start + MAX_STATEMENT, len(lines)) + 1):
                source = "\n".join(lines[start:end])
                try:
                    statement = tomllib.loads(source)
                except (ValueError, RecursionError):
                    tries += 1
                    continue
                if statement:
                    yield start + 1, source, statement
                start = end
                break
            else:
                break
        if start < len(lines):
            self.broken = start + 1


def _header(statement: Mapping[str, Any]) -> KeyPath:
    """The table that [a.b] or [[a.b]] begins."""
    path: KeyPath = ()
    inner: Any = statement
    while isinstance(inner, dict) and inner:
        ((key, inner),) = inner.items()
        path = (*path, key)
    return path


def _paths(table: KeyPath, values: Mapping[str, Any]) -> Iterator[KeyPath]:
    """All keys of a statement, those of dotted keys and inline tables too."""
    for key, value in values.items():
        yield (*table, key)
        if isinstance(value, dict):
            yield from _paths((*table, key), value)

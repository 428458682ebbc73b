"""On which line of a TOML text a top-level key stands: tomllib tells that only of what it cannot
parse.

No grammar of our own: a statement (a table's header, or a key and its value) is a TOML document by
itself, and a part of one that ends with a line is none. So tomllib finds where statements end.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any, Final

MAX_STATEMENT: Final = 20
MAX_TRIES: Final = 2000
"""Lines of one statement, and lines in all that end none: each is parsed from its statement's start
on, and none of ours needs more than one line."""


class Lines:
    """Where each top-level key or table of a text first stands.

    broken: the first line of the first statement that tomllib cannot parse, or that is too much
    (MAX_STATEMENT, MAX_TRIES); nothing behind it is known. None if there is no such statement.
    """

    def __init__(self, text: str) -> None:
        self.broken: int | None = None
        self._found: dict[str, int] = {}
        in_table = False
        for number, source, statement in self._statements(text.split("\n")):
            is_header = source.lstrip().startswith("[")
            if is_header or not in_table:
                (key,) = statement
                self._found.setdefault(key, number)
            in_table |= is_header

    def of(self, key: str) -> int:
        """The key's line, from 1; 1 if it is not known."""
        return self._found.get(key, 1)

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

"""Finds the line of each top-level key of a TOML text, for error messages.

Hand-written because neither tomllib nor tomlkit reports the lines of keys. There is no grammar
here: a statement (a table's header, or a key with its value) is a TOML document by itself, and the
first lines of a longer one are not. So tomllib finds where statements end.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import Any, Final

MAX_STATEMENT: Final = 20
MAX_TRIES: Final = 2000
"""Most lines of one statement, and most lines in all that end no statement: each of those costs
parsing its statement from the start. Our settings need one line each."""


class Lines:
    """The line where each top-level key or table of a text first occurs.

    broken: the first line of the first statement that tomllib cannot parse or that exceeds a limit
    (MAX_STATEMENT, MAX_TRIES); no later keys are known. None if there is no such statement.
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
        """The key's line, counted from 1; 1 if it is not known."""
        return self._found.get(key, 1)

    def _statements(self, lines: list[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
        """The first line, the text and the parsed value of each."""
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

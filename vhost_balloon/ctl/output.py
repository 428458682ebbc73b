"""Standard output: a terminal of some width, or a pipe or file, and what can go wrong with it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import Any, Final, TextIO

from vhost_balloon.ctl.errors import CtlError, ReaderGone

_DEFAULT_SIZE: Final = os.terminal_size((80, 24))


class Output:
    """Where a command's results go; every write is flushed, so that failures are seen here."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Raises CtlError if there is no standard output at all."""
        found = stream or sys.stdout
        if found is None:
            raise CtlError("standard output is closed")
        self.stream: Final = found
        self.terminal: Final = found.isatty()
        self.live: Final = self.terminal and os.environ.get("TERM", "dumb") != "dumb"
        self.unicode: Final = _shows_blocks(found)
        self.colour: Final = self.live and not os.environ.get("NO_COLOR")
        if hasattr(found, "reconfigure"):
            found.reconfigure(errors="backslashreplace")

    def size(self) -> os.terminal_size:
        """Columns and rows of the terminal."""
        try:
            size = os.get_terminal_size(self.stream.fileno())
        except OSError:
            return _DEFAULT_SIZE
        return size if all(size) else _DEFAULT_SIZE  # some pseudo-terminals say 0 x 0

    def room(self) -> int | None:
        """Columns that a line may have; None where there is no terminal to wrap it."""
        return self.size().columns if self.terminal else None

    def lines(self, lines: Iterable[str]) -> None:
        self.write("".join(f"{line}\n" for line in lines))

    def json(self, value: Any) -> None:
        """One line: any control character in it is escaped."""
        self.write(json.dumps(value) + "\n")

    def write(self, text: str) -> None:
        """Raises ReaderGone or CtlError."""
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError as error:
            self._discard()
            if isinstance(error, BrokenPipeError):
                raise ReaderGone from None
            raise CtlError(f"cannot write to standard output: {error.strerror}") from None

    def _discard(self) -> None:
        """Let what is still buffered go nowhere, or it would fail again at the end."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.stream.fileno())
        os.close(null)


def _shows_blocks(stream: TextIO) -> bool:
    try:
        "▁█░→".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True

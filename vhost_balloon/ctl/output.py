"""Writes to standard output: a terminal, a pipe or a file; and lines to standard error."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterable
from typing import Any, Final, TextIO

from vhost_balloon.ctl.errors import CtlError, ReaderGone
from vhost_balloon.ctl.options import PROGRAM
from vhost_balloon.printable import printable

_DEFAULT_SIZE: Final = os.terminal_size((80, 24))


class Output:
    """Writes a command's results. It flushes every write, so that errors are raised here."""

    def __init__(self, stream: TextIO | None = None) -> None:
        """Raises CtlError if standard output is closed."""
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
        """Return the columns and rows of the terminal."""
        try:
            size = os.get_terminal_size(self.stream.fileno())
        except OSError:
            return _DEFAULT_SIZE
        return size if all(size) else _DEFAULT_SIZE  # some pseudo-terminals report 0 x 0

    def room(self) -> int | None:
        """Return the terminal's columns, None if the output is not a terminal."""
        return self.size().columns if self.terminal else None

    def lines(self, lines: Iterable[str]) -> None:
        self.write("".join(f"{line}\n" for line in lines))

    def json(self, value: Any) -> None:
        """Write JSON on one line. It contains no raw control characters."""
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
        """Discard the buffered data: the flush at exit would fail again."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.stream.fileno())
        os.close(null)


def complain(text: str) -> None:
    """Print a line on standard error, if it is open."""
    with contextlib.suppress(OSError):
        # print() would use standard output instead of a closed standard error.
        if sys.stderr is not None:
            print(f"{PROGRAM}: {printable(text)}", file=sys.stderr)


def _shows_blocks(stream: TextIO) -> bool:
    try:
        "▁█░→".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True

"""The demo's output: a live picture on a terminal, one line a second anywhere else.

A reader that goes away (a closed pipe, a terminal that hangs up) ends the output, not the demo.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import TracebackType
from typing import Final, TextIO

from vhost_balloon.demo import picture
from vhost_balloon.demo.picture import History, Style

LOG_SECONDS: Final = 1.0
"""Seconds between two lines of a log; a new part of the play begins with one of its own."""

_DEFAULT_SIZE: Final = os.terminal_size((80, 24))
_HIDE_CURSOR: Final = "\x1b[?25l"
_SHOW_CURSOR: Final = "\x1b[?25h"
_CLEAR_SCREEN: Final = "\x1b[H\x1b[2J"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"


class Screen:
    """Shows one history; a context manager, which gives the cursor back at its end."""

    def __init__(self, history: History, stream: TextIO | None) -> None:
        """`stream` is None where there is no standard output at all."""
        self.history = history
        self._stream = stream
        self._live = stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
        colour = self._live and not os.environ.get("NO_COLOR")
        self._style = Style(unicode=_shows_blocks(stream), colour=colour)
        self._drawn = 0  # lines of the last frame, which the next one replaces
        self._size = os.terminal_size((0, 0))
        self._logged = (-LOG_SECONDS, 0)  # time and marks of the last line

    def show(self) -> None:
        """Show the newest sample."""
        if self._live:
            self._draw()
        else:
            self._log()

    def write(self, lines: Iterable[str]) -> None:
        """Write lines below everything else."""
        self._put("".join(f"{line}\n" for line in lines))
        self._drawn = 0

    def __enter__(self) -> Screen:
        if self._live:
            self._put(_HIDE_CURSOR)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._put(_SHOW_CURSOR)

    def _draw(self) -> None:
        """Draw over the last frame, so that what was on the terminal before stays above it."""
        size = self._terminal_size()
        lines = picture.frame(self.history, size.columns, size.lines, self._style)
        start = f"\x1b[{self._drawn}A\r" if self._drawn else ""
        if self._drawn and size != self._size:
            start = _CLEAR_SCREEN  # a resized terminal has wrapped the old lines anyhow
        body = "".join(f"{line}{_CLEAR_LINE}\n" for line in lines)
        self._put(start + body + _CLEAR_BELOW)
        self._drawn, self._size = len(lines), size

    def _terminal_size(self) -> os.terminal_size:
        try:
            size = os.get_terminal_size(self._stream.fileno()) if self._stream else _DEFAULT_SIZE
        except OSError:
            size = _DEFAULT_SIZE
        return size if all(size) else _DEFAULT_SIZE  # some pseudo-terminals say 0 x 0

    def _log(self) -> None:
        time, marks = self.history.samples[-1].time, len(self.history.marks)
        if time < self._logged[0] + LOG_SECONDS and marks == self._logged[1]:
            return
        if marks != self._logged[1]:
            self.write([f"--- {self.history.marks[-1].text}"])
        self._logged = (time, marks)
        self.write([picture.log_line(self.history)])

    def _put(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self._give_up(self._stream)

    def _give_up(self, stream: TextIO) -> None:
        """Nobody reads any more: let what is still buffered go nowhere, also at exit."""
        self._stream = None
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _shows_blocks(stream: TextIO | None) -> bool:
    try:
        "█░▁".encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True

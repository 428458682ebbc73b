"""The demo's output: a live picture on a terminal, elsewhere a log with one line a second.

If the reader goes away (a closed pipe, a terminal that hangs up), the output ends but not the demo.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Final, Generic, Protocol, TextIO, TypeVar

from vhost_balloon.demo import picture
from vhost_balloon.demo.graph import Style, Timed
from vhost_balloon.demo.history import Mark

LOG_SECONDS: Final = 1.0
"""Seconds between two lines of the log. A new part of the play has an extra line."""

_DEFAULT_SIZE: Final = os.terminal_size((80, 24))
_HIDE_CURSOR: Final = "\x1b[?25l"
_SHOW_CURSOR: Final = "\x1b[?25h"
_CLEAR_SCREEN: Final = "\x1b[H\x1b[2J"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"


class Recorded(Protocol):
    """What a screen shows: samples, and the parts of the play."""

    @property
    def samples(self) -> Sequence[Timed]: ...

    @property
    def marks(self) -> Sequence[Mark]: ...


H = TypeVar("H", bound=Recorded)


class Screen(Generic[H]):
    """Shows a history. A context manager that restores the cursor."""

    def __init__(
        self,
        history: H,
        stream: TextIO | None,
        frame: Callable[[Any, int, int, Style], list[str]] = picture.frame,
        log_line: Callable[[Any], str] = picture.log_line,
    ) -> None:
        """stream: None if standard output is closed. frame, log_line: draw the history, as those of
        picture.py do theirs."""
        self.history = history
        self._frame = frame
        self._log_line = log_line
        self._stream = stream
        self._live = stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
        colour = self._live and not os.environ.get("NO_COLOR")
        self._style = Style(unicode=_shows_blocks(stream), colour=colour)
        self._drawn = 0  # lines of the last frame, which the next one overwrites
        self._size = os.terminal_size((0, 0))
        self._logged = (-LOG_SECONDS, 0)  # time of the last line, and marks until then

    def show(self) -> None:
        """Show the newest sample."""
        if self._live:
            self._draw()
        else:
            self._log()

    def write(self, lines: Iterable[str]) -> None:
        """Write lines below the picture or the log."""
        self._put("".join(f"{line}\n" for line in lines))
        self._drawn = 0

    def __enter__(self) -> Screen[H]:
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
        """Draw over the last frame, and leave the terminal's earlier contents above it."""
        size = self._terminal_size()
        lines = self._frame(self.history, size.columns, size.lines, self._style)
        start = f"\x1b[{self._drawn}A\r" if self._drawn else ""
        if self._drawn and size != self._size:
            start = _CLEAR_SCREEN  # the resized terminal may have wrapped the old lines
        body = "".join(f"{line}{_CLEAR_LINE}\n" for line in lines)
        self._put(start + body + _CLEAR_BELOW)
        self._drawn, self._size = len(lines), size

    def _terminal_size(self) -> os.terminal_size:
        try:
            size = os.get_terminal_size(self._stream.fileno()) if self._stream else _DEFAULT_SIZE
        except OSError:
            size = _DEFAULT_SIZE
        return size if all(size) else _DEFAULT_SIZE  # some pseudo-terminals report 0 x 0

    def _log(self) -> None:
        time, marks = self.history.samples[-1].time, len(self.history.marks)
        if time < self._logged[0] + LOG_SECONDS and marks == self._logged[1]:
            return
        if marks != self._logged[1]:
            self.write([f"--- {self.history.marks[-1].text}"])
        self._logged = (time, marks)
        self.write([self._log_line(self.history)])

    def _put(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self._give_up(self._stream)

    def _give_up(self, stream: TextIO) -> None:
        """Discard the output from now on, including the flush at exit."""
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

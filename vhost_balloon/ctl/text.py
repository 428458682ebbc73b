"""Lays out tables and spark lines. Pure. The rich library would double the tool's start time."""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Final, NamedTuple

_SPARKS: Final = {True: " ▁▂▃▄▅▆▇█", False: " .:-=+*#@"}


def width(text: str) -> int:
    """Return the columns that a printable text takes on a terminal."""
    return len(text) if text.isascii() else sum(map(_character_width, text))


def _character_width(c: str) -> int:
    if unicodedata.combining(c):
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1


def shorten(text: str, columns: int) -> str:
    """Cut a text that takes more columns and mark the cut with "~"."""
    if width(text) <= columns:
        return text
    kept = bisect_right([*accumulate(map(_character_width, text))], columns - 1)
    return text[:kept] + "~" if columns > 0 else ""


def fold(text: str, columns: int | None) -> list[str]:
    """Break a text between words into lines that fit; a longer word is cut. None: one line."""
    if columns is None:
        return [text]
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and width(longer) > columns:
            lines.append(word)
        else:
            lines[-1] = longer
    return [shorten(line, columns) for line in lines]


def pad(text: str, columns: int, *, right: bool = False) -> str:
    """Fill up with blanks, after the text or, to align it right, before it."""
    blanks = " " * (columns - width(text))
    return blanks + text if right else text + blanks


class Column(NamedTuple):
    """right: align right; rank: columns with a high rank are dropped first if room is short."""

    title: str
    right: bool = False
    rank: int = 0


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int | None = None
) -> list[str]:
    """Return the lines of an aligned table, its titles first.

    If room (the terminal's columns) is short, columns are dropped by rank and long lines cut. A row
    of two cells has a text instead of figures.
    """
    cells = [[column.title for column in columns], *([*row] for row in rows)]
    whole = [row for row in cells if len(row) == len(columns)]
    widths = [max(width(row[number]) for row in whole) for number in range(len(columns))]
    widths[0] = max(width(row[0]) for row in cells)
    kept = list(range(len(columns)))
    while room is not None and sum(widths[n] + 2 for n in kept) - 2 > room and len(kept) > 1:
        last = max(kept, key=lambda number: columns[number].rank)
        if columns[last].rank == 0:
            break
        kept.remove(last)
    lines = [
        "  ".join(pad(row[n], widths[n], right=columns[n].right) for n in kept).rstrip()
        if len(row) == len(columns)
        else f"{pad(row[0], widths[0])}  {row[1]}"
        for row in cells
    ]
    return lines if room is None else [shorten(line, room) for line in lines]


def spark(values: Sequence[int | None], most: int, columns: int, *, unicode: bool = True) -> str:
    """Return the newest values as bars, on a scale from 0 to most; None is a blank."""
    levels = _SPARKS[unicode]
    line = ""
    for value in values[len(values) - min(columns, len(values)) :]:
        if value is None or most <= 0:
            line += " "
        else:
            line += levels[max(1, min(8, round(8 * value / most)))]
    return line.rjust(columns)

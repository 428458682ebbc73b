"""Text for people: sizes, times, tables and spark lines. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from fractions import Fraction
from typing import Final, NamedTuple

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_SIZE: Final = re.compile(
    r"(?P<number>[0-9]{1,25}(\.[0-9]{0,25})?|\.[0-9]{1,25})((?P<unit>[KMGTPE])(iB)?|B)?",
    re.IGNORECASE,
)
_MAX_SIZE: Final = (1 << 63) - 1  # QMP's integers
_SPARKS: Final = {True: " ▁▂▃▄▅▆▇█", False: " .:-=+*#@"}
UNKNOWN: Final = "-"


def parse_size(text: str) -> int:
    """Bytes of 1073741824, 512M, 1.5G or 2GiB; units are binary, as QEMU's. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no size such as 512M, 1.5G or 1073741824")
    unit = (match["unit"] or "B").upper()
    size = Fraction(match["number"]) * 1024 ** "BKMGTPE".index(unit)
    if unit == "B" and size.denominator != 1:
        raise ValueError(f"{text!r} is no whole number of bytes")
    if not 1 <= size <= _MAX_SIZE:
        raise ValueError(f"{text!r} is not between 1 byte and 8 EiB")
    return int(size)


def parse_rate(text: str) -> int:
    """Bytes a second of 512M/s, or of a size alone. Raises ValueError."""
    return parse_size(text.removesuffix("/s"))


def format_size(size: int | None) -> str:
    """Three significant digits in a binary unit; "-" for what is not known."""
    if size is None:
        return UNKNOWN
    value, unit = float(size), 0
    while value >= 1023.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    if unit == 0 or value >= 99.95:
        return f"{value:.0f} {_UNITS[unit]}"
    return f"{value:.{2 if value < 9.995 else 1}f}".rstrip("0").rstrip(".") + f" {_UNITS[unit]}"


def width(text: str) -> int:
    """Columns that a printable text takes on a terminal."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def shorten(text: str, columns: int) -> str:
    """Cut a text that takes more columns, and mark the cut."""
    if width(text) <= columns:
        return text
    while text and width(text) + 1 > columns:
        text = text[:-1]
    return text + "~" if columns > 0 else ""


def pad(text: str, columns: int, *, right: bool = False) -> str:
    """Fill up with blanks, before the text (right) or behind it."""
    blanks = " " * (columns - width(text))
    return blanks + text if right else text + blanks


class Column(NamedTuple):
    """title; right: figures are aligned there; rank: the highest goes first if room is short."""

    title: str
    right: bool = False
    rank: int = 0


def table(
    columns: Sequence[Column], rows: Sequence[Sequence[str]], room: int | None = None
) -> list[str]:
    """An aligned table, its titles first. Where room (columns) is short, columns are left out by
    rank, and what is still too long is cut. A row of two cells has a text instead of figures."""
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
    """The newest values as a line of bars, 0 to most; blank where nothing was known."""
    levels = _SPARKS[unicode]
    line = ""
    for value in values[len(values) - min(columns, len(values)) :]:
        if value is None or most <= 0:
            line += " "
        else:
            line += levels[max(1, min(8, round(8 * value / most)))]
    return line.rjust(columns)

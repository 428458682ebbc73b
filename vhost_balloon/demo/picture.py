"""Draws the demo's history as lines of text: the live picture, the log and the summary. Pure.

The bars under the graph show the newest sample and are the graph's legend.
"""

from __future__ import annotations

from typing import Final

from vhost_balloon.demo.graph import Style, graph
from vhost_balloon.demo.history import History, Sample, came_back
from vhost_balloon.sizes import format_size

MIN_WIDTH: Final = 40
MIN_HEIGHT: Final = 10
"""The smallest terminal with a graph; a smaller one shows only the figures."""
MAX_WIDTH: Final = 120
MAX_ROWS: Final = 20
"""The largest picture (columns) and graph (rows); a larger terminal is not filled."""

_FIXED_LINES: Final = 11  # all lines except the graph's rows
_NAME: Final = 13  # columns of a bar's name
_FIGURE: Final = 9  # columns of a bar's figure
_NOTHING: Final = 0.05  # share of the freed memory that counts as none of it


def frame(history: History, width: int, height: int, style: Style) -> list[str]:
    """Return at most height - 1 lines of less than `width` columns (without colour codes)."""
    width = min(width, MAX_WIDTH) - 1  # terminals may wrap after the last column
    newest = history.samples[-1] if history.samples else Sample(0, 0, 0)
    title = history.title[: width - 9].ljust(width - 8) + f"{newest.time:6.1f} s"
    text = history.marks[-1].text if history.marks else ""
    lines = [style.paint("bold", title), text[:width]]
    if width < MIN_WIDTH - 1 or height < MIN_HEIGHT + 1:
        return [line[:width] for line in (title, text, log_line(history))][: max(1, height - 1)]
    rows = min(height - 1 - _FIXED_LINES, MAX_ROWS)
    if rows >= 3:
        rows = rows if rows < 8 else rows // 4 * 4
        lines += ["", *graph(history, width, rows, style), ""]
    return [*lines, *_bars(history.memory, newest, width, style)]


def log_line(history: History) -> str:
    """Return the newest sample as one line, for a log."""
    newest = history.samples[-1] if history.samples else Sample(0, 0, 0)
    name = history.marks[-1].name if history.marks else ""
    return (
        f"{newest.time:5.1f} s  {name:<8} guest {format_size(newest.in_use):>8}  "
        f"host {format_size(newest.resident):>8}  balloon {format_size(newest.balloon):>8}  "
        f"reported {format_size(newest.reported):>8}  freed {format_size(newest.freed):>8}"
    )


def summary(history: History, freed_mark: str = "free") -> list[str]:
    """Return the final figures. freed_mark: the part in which the guest freed its memory."""
    if not history.samples:
        return []
    last = history.samples[-1]
    peak = max(history.samples, key=lambda sample: sample.resident)
    back = came_back(history, freed_mark)
    text = f"{100 * back.share:.0f} % of {format_size(back.released)} within {back.seconds:.1f} s"
    if back.share < _NOTHING:
        text = "it did not" if back.released else "nothing was freed"
    rows = [
        ("guest memory", format_size(history.memory)),
        (
            "host spent at most",
            f"{format_size(peak.resident)} (the guest used {format_size(peak.in_use)})",
        ),
        (
            "host spends now",
            f"{format_size(last.resident)} (the guest uses {format_size(last.in_use)})",
        ),
        ("reported by the guest", format_size(last.reported)),
        ("freed for the host", format_size(last.freed)),
        ("freed memory came back", text),
    ]
    return [f"  {name:<24}{value}" for name, value in rows]


def _bars(memory: int, newest: Sample, width: int, style: Style) -> list[str]:
    """Return three bars, the legend of the graph, and the two totals."""
    rows = (
        ("guest uses", "used", style.used, newest.in_use),
        ("host spends", "idle", style.idle, newest.resident),
        ("balloon", "balloon", style.balloon, newest.balloon),
    )
    room = width - _NAME - _FIGURE - 2
    lines = []
    for name, kind, character, value in rows:
        length = min(room, round(room * value / max(memory, 1)))
        bar = style.paint(kind, character * length) + " " * (room - length)
        lines.append(f"{name:>{_NAME}} {bar} {format_size(value):>{_FIGURE}}")
    reported, freed = format_size(newest.reported), format_size(newest.freed)
    totals = f"reported by the guest {reported}, freed for the host {freed}"
    if len(totals) > width - _NAME - 1:
        totals = f"reported {reported}, freed {freed}"
    return [*lines, " " * (_NAME + 1) + totals[: width - _NAME - 1]]

"""Draws the demo's graph: memory over time. Pure.

The graph stacks the memory that the guest uses (solid) and the memory that the host spends beyond
that (shaded). The shaded part is wasted, and the daemon's job is to return it to the host. The
balloon hangs from the top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Protocol, TypeVar

from vhost_balloon.demo.history import History, Mark, Sample
from vhost_balloon.sizes import format_size

LABEL: Final = 9  # columns of the graph's scale


class Timed(Protocol):
    """A sample of any kind. time: seconds since the start."""

    @property
    def time(self) -> float: ...


T = TypeVar("T", bound=Timed)


@dataclass(frozen=True, slots=True)
class Style:
    """The characters and colours that the terminal can show."""

    unicode: bool = True
    colour: bool = False

    @property
    def used(self) -> str:
        """Memory that the guest uses."""
        return "█" if self.unicode else "#"

    @property
    def idle(self) -> str:
        """Memory that the host spends."""
        return "░" if self.unicode else ":"

    @property
    def balloon(self) -> str:
        """Memory in the balloon: a diagonal stroke."""
        return "\u2571" if self.unicode else "/"

    def paint(self, kind: str, text: str) -> str:
        """Colour a text as one of used, idle, balloon, faint and bold."""
        if not self.colour or not text.strip():
            return text
        code = {"used": 32, "idle": 33, "balloon": 36, "faint": 2, "bold": 1}[kind]
        return f"\x1b[{code}m{text}\x1b[0m"


def graph(history: History, width: int, rows: int, style: Style) -> list[str]:
    """Return the graph with its scale, time axis and marks: rows + 3 lines."""
    columns = width - LABEL - 1
    end = max(history.duration, history.samples[-1].time if history.samples else 0)
    shown = newest_of_columns(history.samples, columns, end)
    lines = [
        _scale(history.memory, row, rows, style)
        + paint_runs([_cell(sample, history.memory, row, rows, style) for sample in shown], style)
        for row in range(rows)
    ]
    return [
        *lines,
        *time_axis(columns, end, style),
        mark_line(history.marks, columns, end, style),
    ]


def newest_of_columns(samples: Sequence[T], columns: int, end: float) -> list[T | None]:
    """Return each column's newest sample at its time or before; None in the future."""
    shown: list[T | None] = []
    position = 0
    for column in range(columns):
        limit = end * (column + 1) / columns
        while position + 1 < len(samples) and samples[position + 1].time <= limit:
            position += 1
        over = not samples or samples[-1].time < end * column / columns
        shown.append(None if over else samples[position])
    return shown


def _cell(sample: Sample | None, memory: int, row: int, rows: int, style: Style) -> tuple[str, str]:
    """Return (kind, character) of one cell; row 0 is the top."""
    if sample is None or not memory:
        return "", " "
    low = rows - 1 - row
    eighths = round((sample.in_use / memory * rows - low) * 8)
    idle = sample.resident / memory * rows - low >= 0.5
    if eighths >= 8:
        return "used", style.used
    if eighths >= 1 and (style.unicode or eighths >= 4):
        return "used", " ▁▂▃▄▅▆▇"[eighths] if style.unicode else style.used
    if idle:
        return "idle", style.idle
    if (memory - sample.balloon) / memory * rows - low < 0.5:
        return "balloon", style.balloon
    return "", " "


def paint_runs(cells: list[tuple[str, str]], style: Style) -> str:
    """Join cells, with one colour code for each run of a kind."""
    text, run, run_kind = "", "", ""
    for kind, character in [*cells, ("end", "")]:
        if kind != run_kind:
            text += style.paint(run_kind, run) if run_kind else run
            run, run_kind = "", kind
        run += character
    return text.rstrip() if not style.colour else text


def _scale(memory: int, row: int, rows: int, style: Style) -> str:
    """Return the label and line at the left of a row; labels at quarters, or only at the top."""
    labelled = row * 4 % rows == 0 if rows % 4 == 0 else row == 0
    label = format_size(memory * (rows - row) // rows) if labelled else ""
    line = ("┤" if labelled else "│") if style.unicode else ("+" if labelled else "|")
    return style.paint("faint", f"{label:>{LABEL}}{line}")


def time_axis(columns: int, end: float, style: Style) -> list[str]:
    """Return the axis line and its labels, about one every ten columns."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)
    step = next((step for step in steps if columns * step / end >= 8), steps[-1])
    dash, tick, corner = ("─", "┬", "└") if style.unicode else ("-", "+", "+")
    axis, labels = [dash] * columns, [" "] * (columns + LABEL)
    for number in range(int(end / step) + 1):
        column = min(columns - 1, round(number * step / end * columns))
        label = f"{number * step} s"
        if column + len(label) <= columns:
            axis[column] = tick
            labels[column : column + len(label)] = label
    lines = [f"{'0':>{LABEL}}{corner}{''.join(axis)}", " " * (LABEL + 1) + "".join(labels)]
    return [style.paint("faint", line.rstrip()) for line in lines]


def mark_line(marks: list[Mark], columns: int, end: float, style: Style) -> str:
    """Return the marks' arrows and, if there is room, their names."""
    arrow = "▴" if style.unicode else "^"
    line = [" "] * columns
    starts = [min(columns - 1, int(mark.time / end * columns)) for mark in marks]
    for mark, (start, following) in zip(marks, pairwise([*starts, columns + 1]), strict=True):
        line[start] = arrow
        before = start - len(mark.name)
        if len(mark.name) + 1 < following - start:
            line[start + 1 : start + 1 + len(mark.name)] = mark.name
        elif mark is marks[-1] and before > 0 and not "".join(line[before - 1 : start]).strip():
            line[before:start] = mark.name  # at the right edge, the name precedes its arrow
    return " " * (LABEL + 1) + "".join(line).rstrip()

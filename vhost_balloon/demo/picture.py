"""Drawing for the demo: a history of measurements as lines of text. Pure, no I/O.

The graph stacks what the guest uses (solid) and what the host spends beyond that (shaded): the
shaded part is memory that nobody needs, and the point of the daemon is that it goes away. The
balloon hangs from the top. The bars under the graph show the newest sample and are its legend.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

MIN_WIDTH: Final = 40
MIN_HEIGHT: Final = 10
"""The smallest terminal that gets a graph; a smaller one gets the figures alone."""
MAX_WIDTH: Final = 120
MAX_ROWS: Final = 20
"""Columns of the picture and rows of the graph; on a larger terminal the rest stays empty."""

_FIXED_LINES: Final = 11  # all lines but the graph's
_LABEL: Final = 9  # columns of the graph's scale
_NAME: Final = 13  # columns of a bar's name
_FIGURE: Final = 9  # columns of a bar's figure
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_CAME_BACK: Final = 0.95  # of the memory that was freed: what comes after is not waited for
_NOTHING: Final = 0.05


@dataclass(frozen=True, slots=True)
class Sample:
    """What was measured at one time; bytes, and seconds since the start.

    Attributes:
        in_use: what the guest itself says it uses.
        resident: what the host spends on the guest's memory (st_blocks).
        balloon: the balloon's size.
        reported: bytes in free pages that the guest has reported until now.
        freed: bytes that the host got back until now, as measured by the daemon.
    """

    time: float
    in_use: int
    resident: int
    balloon: int = 0
    reported: int = 0
    freed: int = 0


@dataclass(frozen=True, slots=True)
class CameBack:
    """released: bytes that were freed; share of them that the host got back in so many seconds."""

    released: int
    share: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Mark:
    """When a part of the play began, its name (one short word), and what happens in it."""

    time: float
    name: str
    text: str


@dataclass(slots=True)
class History:
    """All that a picture shows. `memory` is the guest's in bytes, `duration` the seconds that
    the time axis has at first."""

    title: str
    memory: int
    duration: float
    samples: list[Sample] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Style:
    """What the terminal can show."""

    unicode: bool = True
    colour: bool = False

    @property
    def used(self) -> str:
        """What the guest uses."""
        return "█" if self.unicode else "#"

    @property
    def idle(self) -> str:
        """What the host spends."""
        return "░" if self.unicode else ":"

    @property
    def balloon(self) -> str:
        """What the balloon holds: a diagonal stroke."""
        return "\u2571" if self.unicode else "/"

    def paint(self, kind: str, text: str) -> str:
        """Colour a text as one of used, idle, balloon, faint and bold."""
        if not self.colour or not text.strip():
            return text
        code = {"used": 32, "idle": 33, "balloon": 36, "faint": 2, "bold": 1}[kind]
        return f"\x1b[{code}m{text}\x1b[0m"


def size(count: int) -> str:
    """Return bytes as text in binary units, three significant digits at most before rounding."""
    value = float(count)
    for unit in _UNITS:
        if abs(value) < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    digits = 1 if unit in ("GiB", "TiB", "PiB") and abs(value) < 100 else 0
    return f"{value:.{digits}f} {unit}"


def frame(history: History, width: int, height: int, style: Style) -> list[str]:
    """Return at most height - 1 lines of at most `width` columns (colour codes not counted)."""
    width = min(width, MAX_WIDTH) - 1  # a terminal wraps when its last column is written
    newest = history.samples[-1] if history.samples else Sample(0, 0, 0)
    title = history.title[: width - 9].ljust(width - 8) + f"{newest.time:6.1f} s"
    text = history.marks[-1].text if history.marks else ""
    lines = [style.paint("bold", title), text[:width]]
    if width < MIN_WIDTH - 1 or height < MIN_HEIGHT + 1:
        return [line[:width] for line in (title, text, log_line(history))][: max(1, height - 1)]
    rows = min(height - 1 - _FIXED_LINES, MAX_ROWS)
    if rows >= 3:
        rows = rows if rows < 8 else rows // 4 * 4
        lines += ["", *_graph(history, width, rows, style), ""]
    return [*lines, *_bars(history.memory, newest, width, style)]


def log_line(history: History) -> str:
    """Return the newest sample as one line, for a log."""
    newest = history.samples[-1] if history.samples else Sample(0, 0, 0)
    name = history.marks[-1].name if history.marks else ""
    return (
        f"{newest.time:5.1f} s  {name:<8} guest {size(newest.in_use):>8}  "
        f"host {size(newest.resident):>8}  balloon {size(newest.balloon):>8}  "
        f"reported {size(newest.reported):>8}  freed {size(newest.freed):>8}"
    )


def summary(history: History, freed_mark: str = "free") -> list[str]:
    """Return the closing figures; `freed_mark` names the part in which the guest freed memory."""
    if not history.samples:
        return []
    last = history.samples[-1]
    peak = max(history.samples, key=lambda sample: sample.resident)
    back = came_back(history, freed_mark)
    text = f"{100 * back.share:.0f} % of {size(back.released)} within {back.seconds:.1f} s"
    if back.share < _NOTHING:
        text = "it did not" if back.released else "nothing was freed"
    rows = [
        ("guest memory", size(history.memory)),
        ("host spent at most", f"{size(peak.resident)} (the guest used {size(peak.in_use)})"),
        ("host spends now", f"{size(last.resident)} (the guest uses {size(last.in_use)})"),
        ("reported by the guest", size(last.reported)),
        ("freed for the host", size(last.freed)),
        ("freed memory came back", text),
    ]
    return [f"  {name:<24}{value}" for name, value in rows]


def came_back(history: History, mark_name: str) -> CameBack:
    """How freed memory came back to the host, from the mark to the next one.

    What the host spent beyond the guest's use, at most, is what there was to come back.
    """
    starts = [mark.time for mark in history.marks if mark.name == mark_name]
    if not starts:
        return CameBack(0, 0.0, 0.0)
    end = min((mark.time for mark in history.marks if mark.time > starts[0]), default=math.inf)
    part = [sample for sample in history.samples if starts[0] <= sample.time <= end]
    idle = [max(0, sample.resident - sample.in_use) for sample in part]
    released = max(idle, default=0)
    if not released:
        return CameBack(0, 0.0, 0.0)
    peak = idle.index(released)
    least = min(idle[peak:])
    reached = max(least, (1 - _CAME_BACK) * released)
    first = next(n for n in range(peak, len(part)) if idle[n] <= reached)
    return CameBack(released, 1 - reached / released, part[first].time - starts[0])


def _graph(history: History, width: int, rows: int, style: Style) -> list[str]:
    """The stacked graph with its scale, time axis and marks: rows + 3 lines."""
    columns = width - _LABEL - 1
    end = max(history.duration, history.samples[-1].time if history.samples else 0)
    shown = _columns(history.samples, columns, end)
    lines = [
        _scale(history.memory, row, rows, style)
        + _paint_runs([_cell(sample, history.memory, row, rows, style) for sample in shown], style)
        for row in range(rows)
    ]
    return [
        *lines,
        *_time_axis(columns, end, style),
        _mark_line(history.marks, columns, end, style),
    ]


def _columns(samples: list[Sample], columns: int, end: float) -> list[Sample | None]:
    """One sample for each column: the newest of its time or before, None in the future."""
    shown: list[Sample | None] = []
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


def _paint_runs(cells: list[tuple[str, str]], style: Style) -> str:
    """Join cells, with one colour code for each run of the same kind."""
    text, run, run_kind = "", "", ""
    for kind, character in [*cells, ("end", "")]:
        if kind != run_kind:
            text += style.paint(run_kind, run) if run_kind else run
            run, run_kind = "", kind
        run += character
    return text.rstrip() if not style.colour else text


def _scale(memory: int, row: int, rows: int, style: Style) -> str:
    """The label and line at the left of a row; labels at quarters, or only at the top."""
    labelled = row * 4 % rows == 0 if rows % 4 == 0 else row == 0
    label = size(memory * (rows - row) // rows) if labelled else ""
    line = ("┤" if labelled else "│") if style.unicode else ("+" if labelled else "|")
    return style.paint("faint", f"{label:>{_LABEL}}{line}")


def _time_axis(columns: int, end: float, style: Style) -> list[str]:
    """The axis line and its labels, about one every ten columns."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)
    step = next((step for step in steps if columns * step / end >= 8), steps[-1])
    dash, tick, corner = ("─", "┬", "└") if style.unicode else ("-", "+", "+")
    axis, labels = [dash] * columns, [" "] * (columns + _LABEL)
    for number in range(int(end / step) + 1):
        column = min(columns - 1, round(number * step / end * columns))
        label = f"{number * step} s"
        if column + len(label) <= columns:
            axis[column] = tick
            labels[column : column + len(label)] = label
    lines = [f"{'0':>{_LABEL}}{corner}{''.join(axis)}", " " * (_LABEL + 1) + "".join(labels)]
    return [style.paint("faint", line.rstrip()) for line in lines]


def _mark_line(marks: list[Mark], columns: int, end: float, style: Style) -> str:
    """The marks' names where they begin; one that has no room is its arrow alone."""
    arrow = "▴" if style.unicode else "^"
    line = [" "] * columns
    starts = [min(columns - 1, int(mark.time / end * columns)) for mark in marks]
    for mark, (start, following) in zip(marks, pairwise([*starts, columns + 1]), strict=True):
        line[start] = arrow
        before = start - len(mark.name)
        if len(mark.name) + 1 < following - start:
            line[start + 1 : start + 1 + len(mark.name)] = mark.name
        elif mark is marks[-1] and before > 0 and not "".join(line[before - 1 : start]).strip():
            line[before:start] = mark.name  # at the right edge a name stands before its arrow
    return " " * (_LABEL + 1) + "".join(line).rstrip()


def _bars(memory: int, newest: Sample, width: int, style: Style) -> list[str]:
    """Three bars, which explain the graph's characters, and the two totals."""
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
        lines.append(f"{name:>{_NAME}} {bar} {size(value):>{_FIGURE}}")
    reported, freed = size(newest.reported), size(newest.freed)
    totals = f"reported by the guest {reported}, freed for the host {freed}"
    if len(totals) > width - _NAME - 1:
        totals = f"reported {reported}, freed {freed}"
    return [*lines, " " * (_NAME + 1) + totals[: width - _NAME - 1]]

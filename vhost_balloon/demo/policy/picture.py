"""Draws an act as lines of text: the live picture, the log, and the summary of both. Pure."""

from __future__ import annotations

from typing import Final

from vhost_balloon.demo.graph import (
    LABEL,
    Style,
    mark_line,
    newest_of_columns,
    paint_runs,
    time_axis,
)
from vhost_balloon.demo.policy.history import Act, GuestSample, HostSample
from vhost_balloon.sizes import format_size

MAX_WIDTH: Final = 110
MAX_ROWS: Final = 16
MIN_WIDTH: Final = 60
_ABOVE: Final = 1.25
"""The top of the graph, as a multiple of the host's memory."""
_KINDS: Final = ("idle", "used", "balloon")
"""The colours of the guests, from the bottom up."""


def frame(act: Act, width: int, height: int, style: Style) -> list[str]:
    """Return at most height - 1 lines of less than `width` columns (without colour codes)."""
    width = min(width, MAX_WIDTH) - 1  # terminals may wrap after the last column
    newest = act.samples[-1] if act.samples else HostSample(0.0, ())
    lines = [
        style.paint("bold", f"{act.title[: width - 9]:<{width - 8}}{newest.time:6.1f} s"),
        (act.marks[-1].text if act.marks else "")[:width],
    ]
    table = _table(act, newest, width, style)
    rows = min(height - 8 - len(table), MAX_ROWS)
    if rows >= 4 and width >= MIN_WIDTH - 1:
        lines += ["", *_graph(act, width, rows, style), ""]
    return [*lines, *table][: max(1, height - 1)]


def log_line(act: Act) -> str:
    """Return the newest sample as one line, for a log."""
    newest = act.samples[-1]
    guests = "  ".join(
        f"{guest.name} {format_size(guest.resident)}"
        + (f" of {format_size(guest.target)}" if guest.target < act.size else "")
        + (f" ({guest.reason})" if guest.reason else "")
        for guest in newest.guests
    )
    return (
        f"{newest.time:5.1f} s  available {format_available(act.limit - newest.resident):>9}  "
        f"{guests}"
    )


def summary(without: Act, with_policy: Act, squeezed: str) -> list[str]:
    """Return the comparison. squeezed: the guest that gives memory."""
    acts = (without, with_policy)
    rows = [
        ("least available on the host", [format_available(act.least_available()) for act in acts]),
        ("guests used more than it has for", [f"{act.seconds_over():.1f} s" for act in acts]),
        (f"taken from {squeezed} at most", [format_size(act.most_taken(squeezed)) for act in acts]),
        (f"{squeezed} has in the end", [format_size(act.target_at_end(squeezed)) for act in acts]),
        (f"orders to {squeezed}", [", ".join(act.orders(squeezed)) or "-" for act in acts]),
    ]
    columns = max(len(name) for name, _ in rows) + 2
    lines = [f"  {'':<{columns}}{'reporting only':<18}with the policy"]
    return [*lines, *(f"  {name:<{columns}}{a:<18}{b}" for name, (a, b) in rows)]


def format_available(size: int) -> str:
    return format_size(size) if size >= 0 else f"-{format_size(-size)}"


def _graph(act: Act, width: int, rows: int, style: Style) -> list[str]:
    """Return the guests' resident memory over time, stacked, and the host's memory as a line."""
    columns = width - LABEL - 1
    end = max(act.duration, act.samples[-1].time if act.samples else 0.0)
    shown = newest_of_columns(act.samples, columns, end)
    top = act.limit * _ABOVE
    limit_row = rows - 1 - int(act.limit / top * rows)
    lines = []
    for row in range(rows):
        level = top * (rows - row - 0.5) / rows
        cells = [_cell(sample, level, act.limit, row == limit_row, style) for sample in shown]
        label = format_size(act.limit) if row == limit_row else ""
        lines.append(f"{label:>{LABEL}}{'│' if style.unicode else '|'}" + paint_runs(cells, style))
    axis = time_axis(columns, end, style)
    return [*lines, *axis, mark_line(act.marks, columns, end, style)]


def _cell(
    sample: HostSample | None, level: float, limit: int, is_limit: bool, style: Style
) -> tuple[str, str]:
    """Return (kind, character) at this level."""
    base = 0
    for kind, character, guest in zip(
        _KINDS, _characters(style), sample.guests if sample else (), strict=False
    ):
        base += guest.resident
        if level <= base:
            return ("bold", "!") if level > limit else (kind, character)
    if is_limit:
        return "faint", "─" if style.unicode else "-"
    return "", " "


def _characters(style: Style) -> str:
    return "░█▒" if style.unicode else ":#o"


def _table(act: Act, newest: HostSample, width: int, style: Style) -> list[str]:
    """Return the legend, which is each guest's figures, and the host's line."""
    lines = [
        f"{'':13}{'uses':>9}{'files':>10}{'resident':>10}{'target':>10}  reason"[:width],
        *(
            style.paint(kind, f"{character * 2} {guest.name:<10}") + _figures(guest)[: width - 13]
            for kind, character, guest in zip(
                _KINDS, _characters(style), newest.guests, strict=False
            )
        ),
    ]
    available = format_available(act.limit - newest.resident)
    host = f"available {available} of {format_size(act.limit)}"
    if act.reserve:
        host += f", reserve {format_size(act.reserve)}"
    return [*lines, f"{'':13}{host}"[:width]]


def _figures(guest: GuestSample) -> str:
    sizes = (guest.used, guest.cached, guest.resident, guest.target)
    figures = "".join(f"{format_size(size):>10}" for size in sizes)[1:]
    return f"{figures}  {guest.reason}".rstrip()

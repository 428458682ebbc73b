"""Draws one run as small multiples: the host, k, and each VM. Needs matplotlib (extra `plot`)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.policy.recording import Recording, VmRecording

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GIB: Final = 1024.0
MINUTE: Final = 60

COLUMNS: Final = 5
PANEL: Final = (2.1, 1.15)
HOST_HEIGHT: Final = 2.2
K_HEIGHT: Final = 1.0
"""Inches."""
POINTS: Final = 6000
"""All VMs' lines together have about so many points, so that an SVG stays below 300 kB."""
MOST_POINTS: Final = 500
"""Of one line."""

DEMAND, RESIDENT, TARGET, TROUBLE = "#9aa5b1", "#0072b2", "#d55e00", "#b00020"
SETTINGS: Final[Any] = {  # matplotlib's type for it names every setting that there is
    "font.size": 8,
    "font.sans-serif": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "path.simplify_threshold": 0.5,  # pixels
    "svg.fonttype": "none",
    "svg.hashsalt": "vhost-balloon",
}
"""Text stays text, and the same run gives the same file."""


def plot(recording: Recording, path: Path) -> None:
    """Write a picture of a run, in the format that the suffix of path names (.svg, .png).

    Raises ImportError without matplotlib, and OSError.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(COLUMNS, max(1, len(recording.vms)))
    rows = -(-len(recording.vms) // columns)
    width, height = PANEL[0] * COLUMNS, HOST_HEIGHT + K_HEIGHT + PANEL[1] * rows
    with rc_context(SETTINGS):
        figure = Figure((width, height), layout="constrained", facecolor="white")
        grid = figure.add_gridspec(
            2 + rows, columns, height_ratios=[HOST_HEIGHT, K_HEIGHT, *[PANEL[1]] * rows]
        )
        _draw_host(figure.add_subplot(grid[0, :]), recording)
        _draw_k(figure.add_subplot(grid[1, :]), recording)
        for index, vm in enumerate(recording.vms):
            row, column = divmod(index, columns)
            axes = figure.add_subplot(grid[2 + row, column])
            _draw_vm(axes, vm, points=min(MOST_POINTS, POINTS // (3 * len(recording.vms))))
            if column:
                axes.set_yticks([])
            if row < rows - 1:
                axes.set_xticks([])
            else:
                axes.set_xlabel("minutes")
        _explain(figure)
        _save(figure, path)


def thinned(values: Sequence[float], points: int) -> tuple[list[int], list[float]]:
    """At most so many points, and two for the ends, of a line with one value a second, such that
    all its peaks stay: the lowest and the highest value of each of equal parts. Returns seconds
    and values; NaN is a gap. points: 2 or more."""
    width = max(1, math.ceil(len(values) / (points // 2)))
    seconds: list[int] = []
    for start in range(0, len(values), width):
        part = range(start, min(start + width, len(values)))
        known = [second for second in part if not math.isnan(values[second])] or [start]
        ends = {min(known, key=values.__getitem__), max(known, key=values.__getitem__)}
        seconds += sorted(ends)
    seconds = sorted({0, *seconds, len(values) - 1}) if values else []
    corners = [
        second
        for before, second, after in zip([-1, *seconds], seconds, [*seconds[1:], -1], strict=False)
        if before < 0 or after < 0 or not values[before] == values[second] == values[after]
    ]
    return corners, [values[second] for second in corners]


def _line(axes: Axes, values: Sequence[float], unit: float, points: int, **style: Any) -> None:
    """Draw a line over minutes, in multiples of unit."""
    seconds, kept = thinned(values, points)
    axes.plot([s / MINUTE for s in seconds], [value / unit for value in kept], **style)


def _draw_host(axes: Axes, recording: Recording) -> None:
    axes.set_title(
        f"{recording.rule} in {recording.scenario}, seed {recording.seed}: "
        f"available on a host of {recording.total / GIB:.0f} GiB",
        loc="left",
    )
    _line(axes, recording.available, GIB, MOST_POINTS, color="black")
    reserve = recording.reserve
    for level, name, color, style in (
        (2 * reserve, "twice the reserve", RESIDENT, ":"),
        (reserve, "reserve", RESIDENT, "--"),
        (recording.line, "line of the measures", DEMAND, "--"),
        (0.0, "out of memory", TROUBLE, "-"),
    ):
        axes.axhline(level / GIB, color=color, linestyle=style, linewidth=0.8, label=name)
    axes.set_ylabel("GiB")
    _set_time(axes, len(recording.available), every=5)
    axes.set_ylim(bottom=min(0.0, *recording.available) / GIB - 0.2)
    axes.legend(loc="upper right", ncols=4, frameon=False)
    axes.tick_params(labelbottom=False)


def _set_time(axes: Axes, seconds: int, every: int) -> None:
    """Label minutes, every so many."""
    axes.set_xlim(0, max(1, seconds) / MINUTE)
    axes.set_xticks(range(0, seconds // MINUTE + 1, every))


def _draw_k(axes: Axes, recording: Recording) -> None:
    _line(axes, recording.k, 1, MOST_POINTS, color="black")
    _set_time(axes, len(recording.k), every=5)
    axes.set_ylim(0, 1.05)
    axes.set_ylabel("k")


def _draw_vm(axes: Axes, vm: VmRecording, points: int) -> None:
    axes.set_title(f"{vm.name}, {vm.size / GIB:.3g} GiB", loc="left", fontsize=7, pad=2)
    seconds, demand = thinned(vm.demand, points)
    axes.fill(
        [second / MINUTE for second in (*seconds[:1], *seconds, *seconds[-1:])],
        [0.0, *(0.0 if math.isnan(value) else value / GIB for value in demand), 0.0],
        color=DEMAND,
        linewidth=0,
    )
    _line(axes, vm.resident, GIB, points, color=RESIDENT)
    _line(axes, vm.target, GIB, points, color=TARGET)
    if vm.trouble:
        minutes = [second / MINUTE for second in _spaced(vm.trouble, 10)]
        axes.plot(minutes, [0.0] * len(minutes), "|", color=TROUBLE, markersize=6, clip_on=False)
    _set_time(axes, len(vm.target), every=10)
    axes.set_ylim(0, 1.05 * vm.size / GIB)
    axes.set_yticks([0, vm.size / GIB])


def _spaced(seconds: Iterable[int], width: int) -> list[int]:
    """One second of each width that has any."""
    return sorted({second // width * width for second in seconds})


def _explain(figure: Figure) -> None:
    """The legend for all VMs, below them."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(color=DEMAND, label="demand"),
        Line2D([], [], color=RESIDENT, label="resident on the host"),
        Line2D([], [], color=TARGET, label="target"),
        Line2D([], [], color=TROUBLE, marker="|", linestyle="", label="distress"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)


def _save(figure: Figure, path: Path) -> None:
    """Write the picture without the time at which it was made."""
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(path, dpi=110, metadata=metadata)

"""Benchmark results: rows of figures with their bars, as JSON and as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.benchmarks.summary import Summary, ratios, summarise


@dataclass(frozen=True)
class Bar:
    """The limit that the figure of that name must reach.

    at_most: the figure must stay below instead of above. by_interval: it fails only if the whole
    95 % interval lies beyond the limit.
    """

    figure: str
    limit: float
    at_most: bool = False
    by_interval: bool = False

    def met(self, figure: Summary) -> bool:
        value = figure.median
        if self.by_interval:
            value = figure.low if self.at_most else figure.high
        return value <= self.limit if self.at_most else value >= self.limit


@dataclass
class Row:
    """One piece of work.

    Attributes:
        values: by side or figure, one value per round, in the row's unit.
        over: names of figures, each the paired ratio of two of values: (above, below).
        bars: limits for figures (of values or of over).
        note: a remark for the reader.
    """

    work: str
    unit: str
    values: dict[str, list[float]]
    over: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    bars: Sequence[Bar] = ()
    note: str = ""

    def figures(self) -> dict[str, Summary]:
        """Return all figures, summarised, by name."""
        found = {name: summarise(values) for name, values in self.values.items() if values}
        for name, (above, below) in self.over.items():
            found[name] = summarise(ratios(self.values[above], self.values[below]))
        return found

    def as_json(self) -> dict[str, Any]:
        figures = self.figures()
        return {
            "work": self.work,
            "unit": self.unit,
            "values": self.values,
            "figures": {name: dataclasses.asdict(figure) for name, figure in figures.items()},
            "bars": [
                {**dataclasses.asdict(bar), "met": bar.met(figures[bar.figure])}
                for bar in self.bars
            ],
            "note": self.note,
        }


def table(rows: Iterable[Row]) -> str:
    """Return all rows as text: medians, quartiles in brackets, bars and whether they are met."""
    return "\n".join(line for row in rows for line in _lines(row))


def _lines(row: Row) -> list[str]:
    figures = row.figures()
    lines = [f"{row.work} ({row.unit})" + (f": {row.note}" if row.note else "")]
    for name, figure in figures.items():
        unit = "x" if name in row.over else row.unit
        spread = f"[{figure.lower_quartile:.4g} .. {figure.upper_quartile:.4g}]"
        verdicts = "; ".join(_verdict(bar, figure) for bar in row.bars if bar.figure == name)
        lines.append(f"    {name:24} {figure.median:10.4g} {unit:8} {spread:24} {verdicts}")
        if any(bar.by_interval and bar.figure == name for bar in row.bars):
            lines[-1] += f" (95 %: {figure.low:.4g} .. {figure.high:.4g}, n={figure.count})"
    return [line.rstrip() for line in lines]


def _verdict(bar: Bar, figure: Summary) -> str:
    words = "<=" if bar.at_most else ">="
    return f"{words} {bar.limit:g}: {'met' if bar.met(figure) else 'MISSED'}"

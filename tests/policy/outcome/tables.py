"""The tables of results, as aligned text or as markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.policy.outcome.measures import Measures
from tests.policy.outcome.results import Results

Table = list[list[str]]
"""The header first."""

COLUMNS: dict[str, Callable[[Measures], float]] = {
    "host OOM s": lambda run: run.host_oom,
    "below R0 s": lambda run: run.below,
    "guest distress s": lambda run: run.distress,
    "guest OOM s": lambda run: run.guest_oom,
    "swap-in GiB": lambda run: run.swap_in,
    "re-read GiB": lambda run: run.reread,
    "GiB moved": lambda run: run.moved,
    "host swap-in GiB": lambda run: run.host_swap_in,
}
"""What is added up."""

SINGLE: dict[str, Callable[[Results, str, Sequence[str]], float | None]] = {
    "reversals / VM h": Results.reversals,
    "relief p99 s": Results.relief,
    "need met %": Results.met,
    "Jain": Results.jain,
}
"""What is computed over all runs at once."""


def figure(value: float | None) -> str:
    """Two digits or more; "-" for none."""
    if value is None:
        return "-"
    if value == 0 or abs(value) >= 10:
        return f"{value:.0f}"
    return f"{value:.2f}" if abs(value) < 1 else f"{value:.1f}"


def sums(results: Results, rules: Sequence[str]) -> Table:
    """A line for each rule."""
    table = [["rule", *COLUMNS, *SINGLE]]
    for rule in rules:
        row = [results.total(rule, of) for of in COLUMNS.values()]
        single = [of(results, rule, results.winnable) for of in SINGLE.values()]
        table.append([rule, *map(figure, [*row, *single])])
    return table


def each(results: Results, rules: Sequence[str]) -> Table:
    """A line for each scenario; in a cell, one figure for each rule."""
    table = [["scenario", *COLUMNS, *SINGLE]]
    for name in results.scenarios:
        cells = [
            " / ".join(figure(results.mean(rule, name, of)) for rule in rules)
            for of in COLUMNS.values()
        ]
        cells += [
            " / ".join(figure(of(results, rule, [name])) for rule in rules)
            for of in SINGLE.values()
        ]
        table.append([name, *cells])
    return table


def render(table: Table, *, markdown: bool) -> str:
    if markdown:
        lines = [f"| {' | '.join(row)} |" for row in table]
        return "\n".join([lines[0], "|---" * len(table[0]) + "|", *lines[1:]])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    )

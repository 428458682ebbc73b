"""Simulates the policy and its rivals: python -m tests.policy.simulate [--help]."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from tests.policy.outcome import bars, tables
from tests.policy.outcome.measures import Measures
from tests.policy.outcome.results import Results
from tests.policy.outcome.timing import milliseconds
from tests.policy.rules import RULES, new_rule
from tests.policy.run import Run
from tests.policy.worlds.scenarios import SCENARIOS, world

T = TypeVar("T")

Job = tuple[str, int, tuple[str, ...]]
"""Scenario, seed, rules."""


def simulate(job: Job) -> list[Measures]:
    """Run all rules in one world, and "none" in any case, for what would be missing without."""
    scenario, seed, rules = job
    drawn = world(scenario, seed)
    plain = Run(drawn, new_rule("none"))
    without = plain.go()
    others = [name for name in rules if name != "none"]
    found = [Run(drawn, new_rule(name)).go(plain.available) for name in others]
    return [without, *found] if "none" in rules else found


def seeds(text: str) -> list[int]:
    """Read "0-3,7"."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    if not found:
        raise ValueError("no seed")
    return found


def rules(text: str) -> tuple[str, ...]:
    """Read "ours,mom"."""
    names = tuple(text.split(","))
    if unknown := set(names) - RULES.keys():
        raise argparse.ArgumentTypeError(f"no such rule: {', '.join(sorted(unknown))}")
    return names


def with_progress(found: Iterable[T], count: int) -> Iterator[T]:
    """Show a bar on stderr if it is a terminal."""
    show = sys.stderr.isatty()
    for done, item in enumerate(found, 1):
        if show:
            filled = 40 * done // count
            end = "\n" if done == count else ""
            bar = f"\r[{'#' * filled}{'.' * (40 - filled)}] {done}/{count} worlds"
            print(bar, end=end, file=sys.stderr, flush=True)
        yield item


def run_all(jobs: Sequence[Job], processes: int) -> list[Measures]:
    """Run all jobs on so many processors."""
    if processes == 1:
        return [run for runs in with_progress(map(simulate, jobs), len(jobs)) for run in runs]
    with get_context("spawn").Pool(processes) as pool:
        found = pool.imap_unordered(simulate, jobs)
        return [run for runs in with_progress(found, len(jobs)) for run in runs]


def picture(job: Job, path: Path) -> None:
    """Draw one run."""
    from tests.policy.outcome.plot import plot  # needs matplotlib, which is not always there

    scenario, seed, names = job
    run = Run(world(scenario, seed), new_rule(names[0]), record=True)
    run.go()
    assert run.recording is not None
    plot(run.recording, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.policy.simulate", description=__doc__)
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--seeds", type=seeds, default=seeds("0-19"), help='such as "0-3,7"')
    parser.add_argument("--rules", type=rules, default=tuple(RULES), help=",".join(RULES))
    parser.add_argument("--markdown", action="store_true", help="print tables for a README")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the first rule's run in the first world"
    )
    options = parser.parse_args(arguments)
    jobs = [(name, seed, options.rules) for seed in options.seeds for name in options.scenario]
    if options.plot is not None:
        picture(jobs[0], options.plot)
        return
    results = Results(run_all(jobs, options.processes))
    names = [new_rule(name).name for name in RULES if name in options.rules]
    found = [tables.sums(results, names), tables.each(results, names)]
    if bars.OURS in names:
        found.append(bars.table(results, milliseconds()))
    for table in found:
        print(tables.render(table, markdown=options.markdown), end="\n\n")


if __name__ == "__main__":
    main()

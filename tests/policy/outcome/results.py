"""The measures of many runs, and what is computed over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from tests.policy.outcome.measures import Measures, percentile
from tests.policy.worlds.scenarios import SCENARIOS


class Results:
    """Runs by rule and scenario."""

    def __init__(self, runs: Iterable[Measures]) -> None:
        self._runs: dict[tuple[str, str], list[Measures]] = {}
        for run in sorted(runs, key=lambda run: run.seed):
            self._runs.setdefault((run.rule, run.scenario), []).append(run)
        ran = {scenario for _, scenario in self._runs}
        self.scenarios = [name for name in SCENARIOS if name in ran]
        self.winnable = [name for name in self.scenarios if SCENARIOS[name].winnable]

    def has(self, rule: str) -> bool:
        return any(name == rule for name, _ in self._runs)

    def runs(self, rule: str, scenarios: Sequence[str]) -> list[Measures]:
        return [run for name in scenarios for run in self._runs.get((rule, name), [])]

    def mean(self, rule: str, scenario: str, of: Callable[[Measures], float]) -> float:
        """Over the seeds of a scenario."""
        return fmean(of(run) for run in self.runs(rule, [scenario]))

    def total(self, rule: str, of: Callable[[Measures], float]) -> float:
        """The sum over the winnable scenarios of the means over their seeds."""
        return sum(self.mean(rule, scenario, of) for scenario in self.winnable)

    def relief(self, rule: str, scenarios: Sequence[str]) -> float:
        """p99 of the episodes' lengths, in s; 0 without episodes."""
        runs = self.runs(rule, scenarios)
        return percentile([length for run in runs for length in run.episodes], 0.99)

    def met(self, rule: str, scenarios: Sequence[str]) -> float | None:
        """Percent of what is missing that the rule brought; None if nothing is missing."""
        runs = self.runs(rule, scenarios)
        missing = sum(run.missing for run in runs)
        return 100 * sum(run.brought for run in runs) / missing if missing > 0 else None

    def jain(self, rule: str, scenarios: Sequence[str]) -> float | None:
        """The mean of the runs in which a VM was squeezed; None without any."""
        found = [run.jain for run in self.runs(rule, scenarios) if run.jain is not None]
        return fmean(found) if found else None

    def reversals(self, rule: str, scenarios: Sequence[str]) -> float:
        return fmean(run.reversals for run in self.runs(rule, scenarios))

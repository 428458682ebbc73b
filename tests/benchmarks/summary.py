"""Medians, spreads and intervals of measurements. Pure."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_RESAMPLES: Final = 2000


@dataclass(frozen=True)
class Summary:
    """A median with its quartiles; low and high are the ends of its 95 % interval."""

    median: float
    lower_quartile: float
    upper_quartile: float
    low: float
    high: float
    count: int


def summarise(values: Sequence[float]) -> Summary:
    """Summarise at least one value."""
    low, high = interval(values)
    lower, middle, upper = _quartiles(values)
    return Summary(middle, lower, upper, low, high, len(values))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median, by resampling; deterministic for given values."""
    chooser = random.Random(0)
    medians = sorted(
        statistics.median(chooser.choices(values, k=len(values))) for _ in range(_RESAMPLES)
    )
    return medians[_RESAMPLES // 40], medians[-_RESAMPLES // 40 - 1]


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the ratio of each pair of values of the same round."""
    return [one / other for one, other in zip(above, below, strict=True)]


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, middle, upper

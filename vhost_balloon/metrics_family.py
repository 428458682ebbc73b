"""A metric family over many VMs: its name and words, and how its values are read from a VM."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any, Final

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from vhost_balloon.counters import Histogram
from vhost_balloon.vm import VmStatistics

PREFIX: Final = "vhost_balloon_"

Values = float | tuple[float, ...]
"""A VM's values in a family; one alone is no tuple, because there are so many of these."""

Read = Callable[[VmStatistics], Values | None]


@dataclass(frozen=True)
class Family:
    """One or more series for each VM, which all have the label `vm`.

    labels: names besides `vm`; series: their values, in the order of what read() returns.
    read: None leaves the VM out.
    """

    name: str
    help: str
    read: Read
    labels: tuple[str, ...] = ()
    series: tuple[tuple[str, ...], ...] = ((),)
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily] = GaugeMetricFamily

    def zeros(self) -> tuple[float, ...]:
        return (0,) * len(self.series)

    def metric(self, rows: Iterable[tuple[str, Values]]) -> Metric:
        """The family as the client library has it; a row is a VM's name and its values."""
        metric = self.kind(PREFIX + self.name, self.help, labels=("vm", *self.labels))
        for vm, values in rows:
            several = values if isinstance(values, tuple) else (values,)
            for labels, value in zip(self.series, several, strict=True):
                metric.add_metric((vm, *labels), value)
        return metric


@dataclass(frozen=True)
class HistogramFamily(Family):
    """Its values: the buckets up to each bound, how many there are in all, and their sum."""

    bounds: tuple[float, ...] = ()

    def zeros(self) -> tuple[float, ...]:
        return (0,) * (len(self.bounds) + 3)

    def metric(self, rows: Iterable[tuple[str, Values]]) -> Metric:
        names = (*map(str, self.bounds), "+Inf")
        metric = HistogramMetricFamily(PREFIX + self.name, self.help, labels=("vm",))
        for vm, values in rows:
            assert isinstance(values, tuple)
            *buckets, _, total = values
            metric.add_metric((vm,), tuple(zip(names, buckets, strict=True)), total)
        return metric


def gauge(name: str, text: str, read: Callable[[VmStatistics], float | None]) -> Family:
    """A gauge; None leaves the VM out."""
    return Family(name, text, read)


def counter(name: str, text: str, read: Callable[[VmStatistics], float | None]) -> Family:
    """A counter; None leaves the VM out."""
    return Family(name, text, read, kind=CounterMetricFamily)


def flags(
    name: str,
    text: str,
    label: str,
    words: Mapping[Any, str],
    read: Callable[[VmStatistics], tuple[Any, ...]],
) -> Family:
    """A gauge for each word, 1 for those whose keys read() returns."""

    @cache
    def values(now: tuple[Any, ...]) -> tuple[float, ...]:
        return tuple([int(word in now) for word in words])

    series = tuple((word,) for word in words.values())
    return Family(name, text, lambda vm: values(read(vm)), (label,), series)


def counters(
    name: str,
    text: str,
    labels: tuple[str, ...],
    keys: Mapping[Any, tuple[str, ...]],
    read: Callable[[VmStatistics], Counter[Any]],
) -> Family:
    """A Counter of ours; keys gives the values of labels for each of its keys."""
    zeros = (0,) * len(keys)

    def values(vm: VmStatistics) -> Values:
        counted = read(vm)
        # Most are empty nearly always, and the keys' hashes are dear.
        return tuple([counted.get(key, 0) for key in keys]) if counted else zeros

    return Family(name, text, values, labels, tuple(keys.values()), CounterMetricFamily)


def histogram(
    name: str, text: str, bounds: tuple[float, ...], read: Callable[[VmStatistics], Histogram]
) -> Family:
    """A histogram of ours."""

    def values(vm: VmStatistics) -> Values:
        found = read(vm)
        buckets = tuple(accumulate(found.counts))
        return (*buckets, buckets[-1], found.sum)

    return HistogramFamily(name, text, values, bounds=bounds)

"""A metric family over many VMs: its name and words, and how its values are read from a VM."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from vhost_balloon.metrics.document import Document

PREFIX: Final = "vhost_balloon_"

Values = float | tuple[float, ...]
"""A VM's values in a family; one alone is no tuple, because there are so many of these."""

Read = Callable[[Document], Values | None]


@dataclass(frozen=True)
class Family:
    """One or more series for each VM, which all have the label `vm`.

    labels: names besides `vm`; series: their values, in the order of what read() returns.
    read: None leaves the VM out, as an empty document always does except for `up`.
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


def member(*path: str) -> Read:
    """Reads one number of a document, or a flag as 0 or 1."""
    *outer, last = path

    def read(document: Document) -> float | None:
        for name in outer:
            document = document.get(name, {})
        value = document.get(last)
        return int(value) if isinstance(value, bool) else value

    return read


def gauge(name: str, text: str, read: Read) -> Family:
    return Family(name, text, read)


def counter(name: str, text: str, read: Read) -> Family:
    return Family(name, text, read, kind=CounterMetricFamily)


def flags(
    name: str,
    text: str,
    label: str,
    words: tuple[str, ...],
    read: Callable[[Document], Iterable[str] | None],
) -> Family:
    """A gauge for each word, 1 for those that read() returns."""

    def values(document: Document) -> Values | None:
        now = read(document)
        return None if now is None else tuple([int(word in now) for word in words])

    return Family(name, text, values, (label,), tuple((word,) for word in words))


def counters(
    name: str,
    text: str,
    labels: tuple[str, ...],
    keys: tuple[tuple[str, ...], ...],
    key: str,
) -> Family:
    """A counter for each of keys, the values of labels: an object of a document has an object for
    each label but the last. What it has no number for is 0."""
    zeros = (0,) * len(keys)

    def values(document: Document) -> Values | None:
        counted: Any = document.get(key)
        if not counted:  # as most are, nearly always
            return None if counted is None else zeros
        return tuple([_at(counted, path) for path in keys])

    return Family(name, text, values, labels, keys, CounterMetricFamily)


def _at(counted: Any, path: tuple[str, ...]) -> float:
    for name in path:
        counted = counted.get(name)
        if not counted:
            return 0
    return counted  # type: ignore[no-any-return]


def histogram(name: str, text: str, bounds: tuple[float, ...], key: str) -> Family:
    """A histogram of ours."""

    def values(document: Document) -> Values | None:
        found = document.get(key)
        if found is None:
            return None
        buckets = tuple(accumulate(found["counts"]))
        return (*buckets, buckets[-1], found["sum"])

    return HistogramFamily(name, text, values, bounds=bounds)

"""A metric family over many VMs: name, help and labels, and the reader of a VM's values. Pure."""

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
"""A VM's values in a family. A single value is not a tuple, because most families have just one."""

Read = Callable[[Document], Values | None]


@dataclass(frozen=True)
class Family:
    """One or more series for each VM, all with the label `vm`.

    labels: names of further labels; series: their values, in the order of the values of read().
    read: returns None to leave the VM out, as for an empty document in every family but `up`.
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
        """The client library's form of the family; a row is a VM's name and its values."""
        metric = self.kind(PREFIX + self.name, self.help, labels=("vm", *self.labels))
        for vm, values in rows:
            several = values if isinstance(values, tuple) else (values,)
            for labels, value in zip(self.series, several, strict=True):
                metric.add_metric((vm, *labels), value)
        return metric


@dataclass(frozen=True)
class HistogramFamily(Family):
    """Values: the cumulative counts up to each bound and in all, the count, and the sum."""

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


def member(*path: str) -> Callable[[Document], float | None]:
    """A reader of one number of a document, or of a flag as 0 or 1."""
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
    """A gauge for each word, 1 for the words that read() returns."""

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
    """A counter for each of keys, which are values of labels. The member named key is an object,
    nested once for each further label; a missing number counts as 0."""
    zeros = (0,) * len(keys)

    def values(document: Document) -> Values | None:
        counted: Any = document.get(key)
        if not counted:  # the usual case
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
    """A Histogram of figures/counters.py."""

    def values(document: Document) -> Values | None:
        found = document.get(key)
        if found is None:
            return None
        buckets = tuple(accumulate(found["counts"]))
        return (*buckets, buckets[-1], found["sum"])

    return HistogramFamily(name, text, values, bounds=bounds)

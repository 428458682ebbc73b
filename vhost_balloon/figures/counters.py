"""Counters of one VM, and the document that carries them over a restart. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from protocol.virtio_balloon import Queue
from vhost_balloon.checked import Document, number, reading, real
from vhost_balloon.errors import RingErrorReason

DISCARD_BUCKETS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5)
"""Upper bounds in seconds, from one merged range to the longest permitted hold."""


@dataclass(slots=True)
class Histogram:
    """counts has one entry per bound, and one for the values above the last bound."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass(slots=True)
class Counters:
    """Sizes in bytes.

    reported, inflated, deflated: memory that the guest named, counted as far as it exists.
    freed: memory that the host got back. refused: memory that was named but not discarded, by
    reason (refusal.Refusal). requests: completed chains, by queue. ring_errors: by queue name
    ("ring" if the queue is unknown) and reason. front_end_stalls: how often the front end sent
    nothing, or half a message. huge_pages_freed: host pages that were freed because all of their
    balloon pages were in the balloon.
    """

    reported_bytes: int = 0
    inflated_bytes: int = 0
    deflated_bytes: int = 0
    freed_bytes: int = 0
    huge_pages_freed: int = 0
    refused_bytes: Counter[str] = field(default_factory=Counter)
    refused_ranges: Counter[str] = field(default_factory=Counter)
    requests: Counter[Queue] = field(default_factory=Counter)
    ring_errors: Counter[tuple[str, RingErrorReason]] = field(default_factory=Counter)
    front_end_errors: int = 0
    front_end_stalls: int = 0
    config_changes: int = 0
    discard_seconds: Histogram = field(default_factory=lambda: Histogram(DISCARD_BUCKETS))

    def refuse(self, reason: str, size: int, ranges: int = 1) -> None:
        """Count size bytes (0 for an empty range) as refused."""
        self.refused_bytes[reason] += size
        self.refused_ranges[reason] += ranges


_TOTALS: Final = {
    name.replace("_", "-"): name
    for name in (
        "reported_bytes",
        "inflated_bytes",
        "deflated_bytes",
        "freed_bytes",
        "huge_pages_freed",
        "front_end_errors",
        "front_end_stalls",
        "config_changes",
    )
}
"""Plain counters, by their names on record."""


def counters_document(counters: Counters) -> Document:
    histogram = counters.discard_seconds
    return {
        "totals": {key: getattr(counters, name) for key, name in _TOTALS.items()},
        "refused": {
            "bytes": dict(counters.refused_bytes),
            "ranges": dict(counters.refused_ranges),
        },
        "requests": {queue.value: counters.requests[queue] for queue in Queue},
        "ring-errors": [
            {"queue": queue, "reason": reason.value, "count": count}
            for (queue, reason), count in counters.ring_errors.items()
        ],
        "discard-seconds": {"counts": histogram.counts, "sum": histogram.sum},
    }


def restore_counters(counters: Counters, document: Document) -> None:
    """Raises StateError."""
    with reading("counters"):
        totals = {name: number(document["totals"][key]) for key, name in _TOTALS.items()}
        refused_bytes, refused_ranges = (
            {str(reason): number(count) for reason, count in document["refused"][unit].items()}
            for unit in ("bytes", "ranges")
        )
        requests = {queue: number(document["requests"][queue.value]) for queue in Queue}
        errors = {
            (str(entry["queue"]), RingErrorReason(entry["reason"])): number(entry["count"])
            for entry in document["ring-errors"]
        }
        histogram = document["discard-seconds"]
        counts, seconds = [number(count) for count in histogram["counts"]], real(histogram["sum"])
    for name, value in totals.items():
        setattr(counters, name, value)
    counters.refused_bytes.update(refused_bytes)
    counters.refused_ranges.update(refused_ranges)
    counters.requests.update({queue: count for queue, count in requests.items() if count})
    counters.ring_errors.update(errors)
    if len(counts) == len(counters.discard_seconds.counts):  # start at 0 if the buckets changed
        counters.discard_seconds.counts, counters.discard_seconds.sum = counts, seconds

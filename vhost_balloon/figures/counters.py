"""What is counted of one VM, from its configuration on. Plain numbers, for one thread. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from protocol.virtio_balloon import Queue
from vhost_balloon.checked import Document, number, reading, real
from vhost_balloon.errors import RingErrorReason

DISCARD_BUCKETS: Final = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5)
"""Upper bounds in seconds: one merged range at the low end, the longest allowed hold at the top."""


@dataclass(slots=True)
class Histogram:
    """counts has one entry a bound, and one more for what is above the last."""

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
    """All sizes in bytes.

    reported, inflated, deflated: what the guest named, as far as it lies in memory.
    freed: what really came back to the host. refused: what was named and not discarded, by
    reason (refusal.Refusal). requests: chains completed, by queue. ring_errors: by queue name (or
    "ring" where it was not known) and reason. front_end_stalls: times it said nothing, or half.
    huge_pages_freed: the host's pages that went because all of each was in the balloon.
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


_PLAIN: Final = (
    "reported_bytes",
    "inflated_bytes",
    "deflated_bytes",
    "freed_bytes",
    "huge_pages_freed",
    "front_end_errors",
    "front_end_stalls",
    "config_changes",
)


_QUEUES: Final = tuple(Queue)


def counters_document(counters: Counters) -> Document:
    histogram = counters.discard_seconds
    return {
        "plain": [getattr(counters, name) for name in _PLAIN],
        "refused": [list(counters.refused_bytes.items()), list(counters.refused_ranges.items())],
        "requests": [counters.requests[queue] for queue in _QUEUES],
        "ring-errors": [
            [queue, reason.value, count] for (queue, reason), count in counters.ring_errors.items()
        ],
        "discard-seconds": [histogram.counts, histogram.sum],
    }


def counters_mark(counters: Counters) -> tuple[float, ...]:
    """What is another one whenever counters changed, at a tenth of a document's cost."""
    return (
        counters.reported_bytes,
        counters.deflated_bytes,
        counters.front_end_errors,
        counters.front_end_stalls,
        counters.config_changes,
        counters.discard_seconds.sum,
        sum(counters.requests.values()),
        sum(counters.refused_ranges.values()),
        len(counters.ring_errors) and sum(counters.ring_errors.values()),
    )


def restore_counters(counters: Counters, document: Document) -> None:
    """Raises StateError."""
    with reading("counters"):
        plain = dict(zip(_PLAIN, map(number, document["plain"]), strict=True))
        refused_bytes, refused_ranges = (
            {str(reason): number(count) for reason, count in pairs} for pairs in document["refused"]
        )
        requests = dict(zip(_QUEUES, map(number, document["requests"]), strict=True))
        errors = {
            (str(queue), RingErrorReason(reason)): number(count)
            for queue, reason, count in document["ring-errors"]
        }
        buckets, seconds = document["discard-seconds"]
        counts, seconds = [number(count) for count in buckets], real(seconds)
    for name, value in plain.items():
        setattr(counters, name, value)
    counters.refused_bytes.update(refused_bytes)
    counters.refused_ranges.update(refused_ranges)
    counters.requests.update({queue: count for queue, count in requests.items() if count})
    counters.ring_errors.update(errors)
    if len(counts) == len(counters.discard_seconds.counts):  # other buckets: start anew
        counters.discard_seconds.counts, counters.discard_seconds.sum = counts, seconds

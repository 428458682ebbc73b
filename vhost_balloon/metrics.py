"""What Prometheus is told of each VM.

Names are a promise to those who have alerts and dashboards. A configured VM has its own series
(connected, state, counters, histogram) from the start, the counters at 0, so that the first event
is seen as an increase. What is known only of a guest is left out while there is none, or while the
guest does not say it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import product
from operator import attrgetter
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from protocol.virtio_balloon import Queue, StatTag
from vhost_balloon import __version__
from vhost_balloon.backend import OPERATOR
from vhost_balloon.containment import InternalErrors
from vhost_balloon.convergence import VmState
from vhost_balloon.counters import DISCARD_BUCKETS
from vhost_balloon.errors import RingErrorReason
from vhost_balloon.metrics_family import (
    PREFIX,
    Family,
    counter,
    counters,
    flags,
    gauge,
    histogram,
)
from vhost_balloon.refusal import EVERY_REASON, Refusal
from vhost_balloon.vm import VmStatistics

QUEUES: Final = tuple(queue.value for queue in Queue)
UNKNOWN_QUEUE: Final = "ring"
"""A ring that broke before it was known what it carries (rings.RingSet)."""

PAUSE_REASONS: Final = (
    OPERATOR,
    Refusal.PINNED,
    Refusal.PINS_UNKNOWN,
    Refusal.NEVER,
    Refusal.POISON,
)

_REFUSED: Final = {reason: (reason,) for reason in EVERY_REASON}
_RING_ERRORS: Final = {
    (queue, reason): (queue, reason.value)
    for queue, reason in product((*QUEUES, UNKNOWN_QUEUE), RingErrorReason)
}

VM_FAMILIES: Final = (
    gauge(
        "connected",
        "Whether a front end (such as QEMU) is attached to the VM's socket.",
        lambda vm: +vm.attached,
    ),
    flags(
        "state",
        "What the balloon is doing: 1 for the state that the VM is in.",
        "state",
        {state: state.value for state in VmState},
        lambda vm: (vm.state,),
    ),
    gauge(
        "reporting_paused",
        "Whether reported free pages are acknowledged without being discarded.",
        lambda vm: +vm.reporting_paused,
    ),
    flags(
        "reporting_pause_reason",
        "Why reported free pages are not discarded: 1 for each reason that holds.",
        "reason",
        {reason: reason for reason in PAUSE_REASONS},
        attrgetter("pause_reasons"),
    ),
    gauge(
        "stats_interval_seconds",
        "How often the guest is asked for statistics; 0 if it is asked on demand only.",
        attrgetter("stats_interval"),
    ),
    gauge(
        "queue_map_ambiguous",
        "Whether the optional queues cannot be told apart, and are left unread.",
        lambda vm: +vm.queue_map_ambiguous if vm.attached else None,
    ),
    gauge(
        "guest_memory_bytes",
        "Size of the guest's memory: the sum of the regions that the front end shares.",
        lambda vm: vm.guest_memory or None,
    ),
    gauge("target_bytes", "Memory that the guest is to keep.", attrgetter("target")),
    gauge(
        "actual_bytes",
        "Memory that the guest keeps: its size less what is in the balloon.",
        attrgetter("actual"),
    ),
    gauge(
        "guest_resident_bytes",
        "What the host really spends on the guest's memory: st_blocks, each file once, in RAM and "
        "swap together.",
        attrgetter("resident"),
    ),
    gauge(
        "report_rate_limit_bytes",
        "Bytes a second that the guest's reports may have discarded (--report-rate).",
        attrgetter("report_rate"),
    ),
    Family(
        "huge_pages",
        "Host pages larger than the balloon's, of which a part or all is in the balloon, as far as "
        "the daemon knows.",
        lambda vm: vm.huge_pages and vm.huge_pages[:2],
        ("state",),
        (("partial",), ("whole",)),
    ),
    gauge(
        "huge_pages_waiting_bytes",
        "Memory in the balloon that goes once the rest of its huge pages is there as well; it "
        "counts as refused (partial-huge-page) when it is known that this cannot be.",
        lambda vm: vm.huge_pages and vm.huge_pages.waiting,
    ),
    counter(
        "huge_pages_freed_total",
        "Huge pages that were discarded because all of each was in the balloon.",
        attrgetter("counters.huge_pages_freed"),
    ),
    counter(
        "reported_bytes_total",
        "Free pages that the guest reported, as far as they lie in its memory.",
        attrgetter("counters.reported_bytes"),
    ),
    counter(
        "inflated_bytes_total",
        "Pages that the guest put into the balloon.",
        attrgetter("counters.inflated_bytes"),
    ),
    counter(
        "deflated_bytes_total",
        "Pages that the guest took back from the balloon.",
        attrgetter("counters.deflated_bytes"),
    ),
    counter(
        "freed_bytes_total",
        "Memory that really came back to the host; an estimate while the guest runs and requests "
        "overlap.",
        attrgetter("counters.freed_bytes"),
    ),
    counters(
        "refused_bytes_total",
        "Bytes of requests that were refused or not discarded, by reason.",
        ("reason",),
        _REFUSED,
        attrgetter("counters.refused_bytes"),
    ),
    counters(
        "refused_ranges_total",
        "Ranges that were not discarded, by reason; some of them are empty.",
        ("reason",),
        _REFUSED,
        attrgetter("counters.refused_ranges"),
    ),
    counters(
        "requests_total",
        "Requests of the guest that were completed, by queue.",
        ("queue",),
        {queue: (queue.value,) for queue in Queue},
        attrgetter("counters.requests"),
    ),
    counters(
        "ring_errors_total",
        "Rings that were stopped because the guest broke their structure.",
        ("queue", "reason"),
        _RING_ERRORS,
        attrgetter("counters.ring_errors"),
    ),
    counter(
        "front_end_errors_total",
        "Messages of the front end that were refused, or that ended its connection.",
        attrgetter("counters.front_end_errors"),
    ),
    counter(
        "front_end_stalls_total",
        "Times that the front end said nothing, or stopped inside a message.",
        attrgetter("counters.front_end_stalls"),
    ),
    counter(
        "config_changes_total",
        "Times that the front end was told of a new target.",
        attrgetter("counters.config_changes"),
    ),
    histogram(
        "discard_seconds",
        "Time to discard one batch (64 MiB or 1024 pieces at most).",
        DISCARD_BUCKETS,
        attrgetter("counters.discard_seconds"),
    ),
    gauge(
        "guest_stats_age_seconds",
        "Age of the guest's statistics; there is none before the first sample.",
        attrgetter("stats_age"),
    ),
)
"""All but the guest's statistics."""

_GUEST_GAUGES: Final = {
    StatTag.MEMFREE: ("free_bytes", "Memory that the guest does not use for anything."),
    StatTag.MEMTOT: ("memory_bytes", "Memory that the guest's kernel has to give out."),
    StatTag.AVAIL: ("available_bytes", "Memory that the guest could use without swapping."),
    StatTag.CACHES: ("caches_bytes", "Page cache that the guest could drop at once."),
}
_GUEST_COUNTERS: Final = {
    StatTag.SWAP_IN: ("swap_in_bytes_total", "Memory that the guest read back from its swap."),
    StatTag.SWAP_OUT: ("swap_out_bytes_total", "Memory that the guest wrote to its swap."),
    StatTag.MAJFLT: ("major_faults_total", "Page faults that the guest read from disk for."),
    StatTag.MINFLT: ("minor_faults_total", "Page faults that the guest served from memory."),
    StatTag.HTLB_PGALLOC: ("hugetlb_allocations_total", "Huge pages that the guest allocated."),
    StatTag.HTLB_PGFAIL: ("hugetlb_failures_total", "Huge pages that the guest could not get."),
    StatTag.OOM_KILL: ("oom_kills_total", "Processes that the guest killed for lack of memory."),
    StatTag.ALLOC_STALL: ("alloc_stalls_total", "Allocations that waited for memory to be freed."),
    StatTag.ASYNC_SCAN: ("async_scans_total", "Pages that the guest looked at in background."),
    StatTag.DIRECT_SCAN: ("direct_scans_total", "Pages that waiting allocations looked at."),
    StatTag.ASYNC_RECLAIM: ("async_reclaims_total", "Pages that the guest freed in background."),
    StatTag.DIRECT_RECLAIM: ("direct_reclaims_total", "Pages that waiting allocations freed."),
}


def _guest_value(tag: StatTag) -> Callable[[VmStatistics], int | None]:
    return lambda vm: vm.stats.get(tag)


FAMILIES: Final[tuple[Family, ...]] = (
    *VM_FAMILIES,
    *(gauge(f"guest_stat_{name}", text, _guest_value(tag))
      for tag, (name, text) in _GUEST_GAUGES.items()),
    *(counter(f"guest_stat_{name}", text, _guest_value(tag))
      for tag, (name, text) in _GUEST_COUNTERS.items()),
)  # fmt: skip
"""Every family that has a series for each VM."""


def vm_label(vm_id: str) -> str:
    """A VM's name as a label: Prometheus takes only UTF-8, and a file's name may be anything."""
    return vm_id.encode(errors="backslashreplace").decode()


class VmCollector(Collector):
    """All VMs, for the client library."""

    def __init__(self, snapshots: Callable[[], Iterable[VmStatistics]]) -> None:
        self._snapshots = snapshots

    def collect(self) -> Iterator[Metric]:
        vms = [(vm_label(vm.id), vm) for vm in self._snapshots()]
        for family in FAMILIES:
            read = [(name, family.read(vm)) for name, vm in vms]
            yield family.metric((name, values) for name, values in read if values is not None)


class BuildCollector(Collector):
    """Which version runs."""

    def collect(self) -> Iterator[Metric]:
        text = "The daemon that runs."
        yield InfoMetricFamily(f"{PREFIX}build", text, {"version": __version__})


class InternalErrorCollector(Collector):
    """Bugs that ended nothing but a client, or a service for a while (containment)."""

    def __init__(self, errors: InternalErrors) -> None:
        self._errors = errors

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            f"{PREFIX}internal_errors",
            "Failures of the daemon itself that ended a client or restarted a side service.",
            labels=("where",),
        )
        for where, count in self._errors.counts.items():
            family.add_metric((where,), count)
        yield family

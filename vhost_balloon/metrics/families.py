"""The metrics of each VM.

Names are stable: alerts and dashboards depend on them. A configured VM has its series (connected,
state, counters, histogram) from the start, with counters at 0, so that the first event counts as an
increase. Series about the guest are left out while there is no guest or it does not report them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Final

from prometheus_client.metrics_core import CounterMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from protocol.virtio_balloon import STAT_NAMES, STAT_VALUES_END, Queue, StatTag
from vhost_balloon import __version__
from vhost_balloon.containment import PLACES, InternalErrors
from vhost_balloon.errors import RingErrorReason
from vhost_balloon.figures.counters import DISCARD_BUCKETS
from vhost_balloon.figures.refusal import EVERY_REASON, PAUSE_REASONS
from vhost_balloon.figures.statistics import VmState
from vhost_balloon.figures.vm_info import RINGS
from vhost_balloon.metrics.document import Document
from vhost_balloon.metrics.family import (
    PREFIX,
    Family,
    Read,
    Values,
    counter,
    counters,
    flags,
    gauge,
    histogram,
    member,
)
from vhost_balloon.metrics.policy_families import POLICY_FAMILIES

_REFUSED: Final = tuple((reason,) for reason in EVERY_REASON)
_RING_ERRORS: Final = tuple(
    (ring, reason.value) for ring, reason in product(RINGS, RingErrorReason)
)


def _state(document: Document) -> tuple[str, ...] | None:
    return (document["state"],) if "state" in document else None


def _queue_map_ambiguous(document: Document) -> Values | None:
    return member("queue-map-ambiguous")(document) if document.get("attached") else None


def _huge_pages(document: Document) -> Values | None:
    pages = document.get("huge-pages")
    return None if pages is None else (pages.get("partial", 0), pages.get("whole", 0))


VM_FAMILIES: Final = (
    gauge(
        "up",
        "Whether the VM's daemon answered with valid figures.",
        lambda document: int(bool(document)),
    ),
    gauge(
        "connected",
        "Whether a front end (such as QEMU) is attached to the VM's socket.",
        member("attached"),
    ),
    flags(
        "state",
        "State of the balloon: 1 for the current state.",
        "state",
        tuple(state.value for state in VmState),
        _state,
    ),
    gauge(
        "reporting_paused",
        "Whether reported free pages are acknowledged without being discarded.",
        member("reporting-paused"),
    ),
    flags(
        "reporting_pause_reason",
        "Why reported free pages are not discarded: 1 for each reason that applies.",
        "reason",
        PAUSE_REASONS,
        lambda document: document.get("pause-reasons"),
    ),
    gauge(
        "stats_interval_seconds",
        "How often the guest is asked for statistics; 0 for on demand only.",
        member("stats-interval"),
    ),
    gauge(
        "queue_map_ambiguous",
        "Whether the optional queues cannot be told apart and are therefore not read.",
        _queue_map_ambiguous,
    ),
    gauge(
        "guest_memory_bytes",
        "Size of the guest's memory: RAM and DIMMs, without what else the front end shares.",
        lambda document: document.get("guest-memory") or None,
    ),
    gauge("target_bytes", "Memory for the guest to keep.", member("target")),
    gauge(
        "actual_bytes",
        "Memory that the guest keeps: its size minus the balloon.",
        member("actual"),
    ),
    gauge(
        "held",
        "Whether an operator's order keeps the host's policy from changing the target.",
        member("held"),
    ),
    gauge(
        "guest_resident_bytes",
        "Memory that the host really spends on the guest, in RAM and swap: st_blocks, each file "
        "counted once.",
        member("resident"),
    ),
    gauge(
        "report_rate_limit_bytes",
        "Bytes a second of the guest's reports that are discarded at most (--report-rate).",
        member("report-rate"),
    ),
    Family(
        "huge_pages",
        "Host pages larger than the balloon's that are partly or wholly in the balloon, as far as "
        "the daemon knows.",
        _huge_pages,
        ("state",),
        (("partial",), ("whole",)),
    ),
    gauge(
        "huge_pages_waiting_bytes",
        "Memory in the balloon that is freed once the rest of its huge pages is there too; counted "
        "as refused (partial-huge-page) once that is known to be impossible.",
        member("huge-pages", "waiting-bytes"),
    ),
    counter(
        "huge_pages_freed_total",
        "Huge pages that were discarded because they were wholly in the balloon.",
        member("huge-pages-freed"),
    ),
    counter(
        "reported_bytes_total",
        "Free pages that the guest reported, as far as they are in its memory.",
        member("reported-bytes"),
    ),
    counter(
        "inflated_bytes_total",
        "Pages that the guest put into the balloon.",
        member("inflated-bytes"),
    ),
    counter(
        "deflated_bytes_total",
        "Pages that the guest took back from the balloon.",
        member("deflated-bytes"),
    ),
    counter(
        "freed_bytes_total",
        "Memory that really returned to the host; an estimate while the guest runs.",
        member("freed-bytes"),
    ),
    counters(
        "refused_bytes_total",
        "Bytes of requests that were refused or not discarded, by reason.",
        ("reason",),
        _REFUSED,
        "refused-bytes",
    ),
    counters(
        "refused_ranges_total",
        "Ranges that were not discarded, by reason; some of them are empty.",
        ("reason",),
        _REFUSED,
        "refused-ranges",
    ),
    counters(
        "requests_total",
        "Completed requests of the guest, by queue.",
        ("queue",),
        tuple((queue.value,) for queue in Queue),
        "requests",
    ),
    counters(
        "ring_errors_total",
        "Rings stopped because the guest broke their structure.",
        ("queue", "reason"),
        _RING_ERRORS,
        "ring-errors",
    ),
    counter(
        "front_end_errors_total",
        "Messages of the front end that were refused or ended its connection.",
        member("front-end-errors"),
    ),
    counter(
        "front_end_stalls_total",
        "Times that the front end stayed silent or stopped inside a message.",
        member("front-end-stalls"),
    ),
    counter(
        "config_changes_total",
        "Times that the front end was notified of a new target.",
        member("config-changes"),
    ),
    histogram(
        "discard_seconds",
        "Time to discard one piece (8 MiB or 512 ranges at most).",
        DISCARD_BUCKETS,
        "discard-seconds",
    ),
    counters(
        "internal_errors_total",
        "Failures of the VM's daemon itself that ended a client or restarted a side service.",
        ("where",),
        tuple((where,) for where in PLACES),
        "internal-errors",
    ),
    gauge(
        "guest_stats_age_seconds",
        "Age of the guest's statistics; missing before the first sample.",
        member("stats-age"),
    ),
)
"""All but the guest's statistics."""

_GUEST_GAUGES: Final = {
    StatTag.MEMFREE: ("free_bytes", "Memory that the guest does not use for anything."),
    StatTag.MEMTOT: ("memory_bytes", "Memory that the guest's kernel can allocate."),
    StatTag.AVAIL: ("available_bytes", "Memory that the guest could use without swapping."),
    StatTag.CACHES: ("caches_bytes", "Page cache that the guest could drop at once."),
}
_GUEST_COUNTERS: Final = {
    StatTag.SWAP_IN: ("swap_in_bytes_total", "Memory that the guest read back from its swap."),
    StatTag.SWAP_OUT: ("swap_out_bytes_total", "Memory that the guest wrote to its swap."),
    StatTag.MAJFLT: ("major_faults_total", "Page faults that made the guest read from disk."),
    StatTag.MINFLT: ("minor_faults_total", "Page faults that the guest served from memory."),
    StatTag.HTLB_PGALLOC: ("hugetlb_allocations_total", "Huge pages that the guest allocated."),
    StatTag.HTLB_PGFAIL: ("hugetlb_failures_total", "Failed huge page allocations of the guest."),
    StatTag.OOM_KILL: ("oom_kills_total", "Processes that the guest killed for lack of memory."),
    StatTag.ALLOC_STALL: ("alloc_stalls_total", "Allocations that waited for memory to be freed."),
    StatTag.ASYNC_SCAN: ("async_scans_total", "Pages that the guest scanned in the background."),
    StatTag.DIRECT_SCAN: ("direct_scans_total", "Pages that waiting allocations scanned."),
    StatTag.ASYNC_RECLAIM: (
        "async_reclaims_total",
        "Pages that the guest freed in the background.",
    ),
    StatTag.DIRECT_RECLAIM: ("direct_reclaims_total", "Pages that waiting allocations freed."),
}


def _statistic(tag: StatTag) -> Read:
    """Without a value that says "unknown", which an older daemon may give: a counter that goes
    there and back would count 2^64 events."""
    read = member("stats", STAT_NAMES[tag])

    def known(document: Document) -> float | None:
        value = read(document)
        return value if value is None or value < STAT_VALUES_END else None

    return known


FAMILIES: Final[tuple[Family, ...]] = (
    *VM_FAMILIES,
    *(gauge(f"guest_stat_{name}", text, _statistic(tag))
      for tag, (name, text) in _GUEST_GAUGES.items()),
    *(counter(f"guest_stat_{name}", text, _statistic(tag))
      for tag, (name, text) in _GUEST_COUNTERS.items()),
)  # fmt: skip
"""Every family that a VM's daemon has figures for."""

EVERY_FAMILY: Final = (*FAMILIES, *POLICY_FAMILIES)
"""Every family that has a series for each VM."""


class BuildCollector(Collector):
    """The version of this program."""

    def collect(self) -> Iterator[Metric]:
        text = "The program that answered this scrape."
        yield InfoMetricFamily(f"{PREFIX}build", text, {"version": __version__})


class HubErrorCollector(Collector):
    """Contained failures of the hub."""

    def __init__(self, errors: InternalErrors) -> None:
        self._errors = errors

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            f"{PREFIX}hub_internal_errors",
            "Failures of the hub itself that ended a client, cost a VM its figures or restarted a "
            "service.",
            labels=("where",),
        )
        for where, count in self._errors.counts.items():
            family.add_metric((where,), count)
        yield family

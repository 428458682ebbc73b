"""The metrics of the policy, made from the document of query-policy (figures/policy_info.py).

The hub adds each VM's part of the document to the VM's snapshot, as its member "policy". While the
policy is off, or the host's memory cannot be read, there is no such member. While it is off, only
the mode is shown of the host. Memory that goes back to all VMs by order is shown in any mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vhost_balloon.figures.policy_info import PARTS
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.metrics.document import Document
from vhost_balloon.metrics.family import (
    PREFIX,
    Family,
    Read,
    Values,
    counter,
    flags,
    gauge,
    member,
)

POLICY: Final = "policy"
"""The member of a snapshot."""

_ORDERS: Final = tuple(PARTS["PolicyDecisions"])


def _decisions(document: Document) -> Values | None:
    counted = document.get(POLICY, {}).get("decisions")
    return None if counted is None else tuple([counted.get(reason, 0) for reason in _ORDERS])


def _reason(document: Document) -> tuple[str, ...] | None:
    return (document[POLICY]["reason"],) if POLICY in document else None


def _of(name: str) -> Read:
    return member(POLICY, name)


POLICY_FAMILIES: Final = (
    gauge("policy_demand_bytes", "Memory that the guest used at its last sample.", _of("demand")),
    gauge(
        "policy_peak_bytes",
        "Memory that the guest used lately; it falls by half in 300 s.",
        _of("peak"),
    ),
    gauge("policy_keep_bytes", "Memory that the policy would leave the VM.", _of("keep")),
    gauge("policy_spare_bytes", "Memory that the VM has beyond what it may keep.", _of("spare")),
    gauge(
        "policy_distress",
        "Whether the guest's statistics show that it needs more memory.",
        _of("distress"),
    ),
    flags(
        "policy_reason",
        "Why the policy moved the VM or left it alone: 1 for the current reason.",
        "reason",
        tuple(reason.value for reason in Reason),
        _reason,
    ),
    Family(
        "policy_decisions_total",
        "Orders that the policy gave, by reason.",
        _decisions,
        ("reason",),
        tuple((reason,) for reason in _ORDERS),
        CounterMetricFamily,
    ),
    counter(
        "policy_reversals_total",
        "Orders of the policy that went against the direction of the one before.",
        _of("reversals"),
    ),
)
"""Every family of the policy that has a series for each VM."""

_OF_THE_HOST: Final[Mapping[str, tuple[str, str]]] = {
    "available": (
        "policy_host_available_bytes",
        "Memory that the host could allocate without swapping, as the policy takes it.",
    ),
    "reserve": (
        "policy_host_reserve_bytes",
        "Memory that is to stay available; the host is short below it.",
    ),
    "some": (
        "policy_host_pressure_ratio",
        "Share of the last tick in which tasks on the host waited for memory.",
    ),
    "k": (
        "policy_room_ratio",
        "Share of the room that guests would like which they may keep (k).",
    ),
    "short": ("policy_short", "Whether the host has less available than its reserve."),
    "spare": ("policy_host_spare_bytes", "Memory that all VMs may give."),
}


class PolicyCollector(Collector):
    """The policy's state, and the host as the policy sees it.

    document: returns that of query-policy. modes: their names.
    """

    def __init__(self, document: Callable[[], Mapping[str, Any]], modes: tuple[str, ...]) -> None:
        self._document = document
        self._modes = modes

    def collect(self) -> Iterator[Metric]:
        document = self._document()
        mode = GaugeMetricFamily(
            f"{PREFIX}policy_mode",
            "Whether memory moves by itself: 1 for the mode in force.",
            labels=("mode",),
        )
        for name in self._modes:
            mode.add_metric((name,), int(name == document["mode"]))
        yield mode
        if document["mode"] == "off" and "host" not in document:
            return  # with it, memory goes back to all VMs by order
        yield GaugeMetricFamily(
            f"{PREFIX}policy_host_readable",
            "Whether the host's memory can be read, without which nothing is decided.",
            int(document["host-readable"]),
        )
        # Figures of the last time that it could be read would keep alerts firing, or silent.
        host = document.get("host", {}) if document["host-readable"] else {}
        for key, (name, text) in _OF_THE_HOST.items():
            if key in host:
                yield GaugeMetricFamily(PREFIX + name, text, float(host[key]))


def with_policy(
    rows: list[tuple[str, Document | None]], document: Mapping[str, Any]
) -> list[tuple[str, Document | None]]:
    """The snapshots of VMs, each with its part of the document.

    While the host's memory cannot be read, those parts are of the last decision: as old as the
    host's figures, and left out like these.
    """
    parts = {vm["id"]: vm for vm in document["vms"] if document["host-readable"]}
    return [
        (name, {**vm, POLICY: parts[name]} if vm and name in parts else vm) for name, vm in rows
    ]

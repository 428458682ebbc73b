"""What the metrics tests share: scraping VMs that only pretend, and reading the text back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from vhost_balloon.metrics_text import Exposition
from vhost_balloon.vm import Machine, VmStatistics

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""Values by name and labels."""

OPENMETRICS: Final = (
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2"
)
"""What Prometheus accepts, in short."""


def snapshots(machine: Machine) -> list[VmStatistics]:
    return [vm.statistics() for vm in machine.vms.values()]


def exposition(machine: Machine) -> Exposition:
    return Exposition(lambda: snapshots(machine))


def samples(families: Iterable[Metric]) -> Samples:
    found: Samples = {}
    for family in families:
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def scrape(machine: Machine) -> Samples:
    body, _ = exposition(machine).render("", 0)
    return samples(text_string_to_metric_families(body.decode()))

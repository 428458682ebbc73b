"""The snapshot of a VM: one document from which query-vms, metrics and the hub are made.

JSON values by QMP's manner of naming. What is not known is left out, as QMP does.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from protocol.qmp import Json, Object
from protocol.vhost_user import ProtocolFeature, VhostFeature
from protocol.virtio_balloon import STAT_NAMES, BalloonFeature
from protocol.virtio_ring import RingFeature
from vhost_balloon.figures.counters import Counters
from vhost_balloon.figures.statistics import HugePages, QueueStatistics, RegionStatistics
from vhost_balloon.vm.settings import settings_to_json
from vhost_balloon.vm.snapshot import VmStatistics


def describe_vm(vm: VmStatistics) -> Object:
    """One element of query-vms: sizes in bytes, ages in seconds."""
    return _known(
        {
            "id": vm.id,
            "attached": vm.attached,
            "state": vm.state.value,
            "settings": None if vm.settings is None else settings_to_json(vm.settings),
            "socket-path": None if vm.socket_path is None else str(vm.socket_path),
            "front-end-pid": vm.front_end_pid,
            "features": names(vm.features, BalloonFeature, VhostFeature, RingFeature),
            "protocol-features": names(vm.protocol_features, ProtocolFeature),
            "queues": [_describe_queue(queue) for queue in vm.queues],
            "regions": [_describe_region(region) for region in vm.regions],
            "guest-memory": vm.guest_memory,
            "target": vm.target,
            "pending": vm.pending,
            "actual": vm.actual,
            "balloon": vm.balloon,
            "resident": vm.resident,
            "driver-ready": vm.driver_ready,
            "reporting-paused": vm.reporting_paused,
            "pause-reasons": list(vm.pause_reasons),
            "queue-map-ambiguous": vm.queue_map_ambiguous,
            "stats": {STAT_NAMES[tag]: value for tag, value in vm.stats.items()},
            "stats-age": vm.stats_age,
            "stats-interval": vm.stats_interval,
            "report-rate": vm.report_rate,
            "huge-pages": _describe_huge_pages(vm.huge_pages),
            "internal-errors": {where: n for where, n in vm.internal_errors.items() if n},
            **_describe_counters(vm.counters),
        }
    )


def names(bits: int, *kinds: Iterable[enum.IntFlag]) -> list[str]:
    """The names of the bits set, lowest first; "bit-N" for one that no kind has a name for."""
    known = {int(flag): str(flag.name) for kind in kinds for flag in kind}
    masks = [1 << bit for bit in range(bits.bit_length()) if bits >> bit & 1]
    return [
        known.get(mask, f"bit-{mask.bit_length() - 1}").lower().replace("_", "-") for mask in masks
    ]


def _describe_queue(queue: QueueStatistics) -> Object:
    return _known(
        {
            "index": queue.index,
            "queue": queue.queue and queue.queue.value,
            "size": queue.size,
            "started": queue.started,
            "enabled": queue.enabled,
            "broken": queue.broken,
            "requests": queue.requests,
        }
    )


def _describe_region(region: RegionStatistics) -> Object:
    return {
        "guest-address": region.guest_address,
        "size": region.size,
        "page-size": region.page_size,
        "backing": region.backing,
    }


def _describe_huge_pages(pages: HugePages | None) -> Json:
    if pages is None:
        return None
    return {
        "partial": pages.partial,
        "whole": pages.whole,
        "waiting-bytes": pages.waiting,
    }


def _describe_counters(counters: Counters) -> dict[str, Json]:
    return {
        "reported-bytes": counters.reported_bytes,
        "inflated-bytes": counters.inflated_bytes,
        "deflated-bytes": counters.deflated_bytes,
        "freed-bytes": counters.freed_bytes,
        "huge-pages-freed": counters.huge_pages_freed,
        "refused-bytes": dict(counters.refused_bytes),
        "refused-ranges": dict(counters.refused_ranges),
        "requests": {queue.value: count for queue, count in counters.requests.items()},
        "ring-errors": _describe_ring_errors(counters),
        "front-end-errors": counters.front_end_errors,
        "front-end-stalls": counters.front_end_stalls,
        "config-changes": counters.config_changes,
        "discard-seconds": {
            "counts": list(counters.discard_seconds.counts),
            "sum": counters.discard_seconds.sum,
        },
    }


def _describe_ring_errors(counters: Counters) -> Json:
    """By queue, then by reason."""
    found: dict[str, dict[str, int]] = {}
    for (queue, reason), count in counters.ring_errors.items():
        found.setdefault(queue, {})[reason.value] = count
    return found


def _known(members: dict[str, Json]) -> Object:
    return {name: value for name, value in members.items() if value is not None}

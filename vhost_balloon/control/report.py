"""Describes the VM: the document from which query-vms, the metrics and the hub are made.

Its members are those of figures/vm_info.py. A plain one is the attribute of that name, of the
snapshot or of its counters.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Any, Final

from protocol.qmp import Json, Object
from protocol.vhost_user import ProtocolFeature, VhostFeature
from protocol.virtio_balloon import STAT_NAMES, BalloonFeature
from protocol.virtio_ring import RingFeature
from vhost_balloon.figures.counters import Counters
from vhost_balloon.figures.vm_info import PARTS, VM_INFO
from vhost_balloon.name_text import name_text
from vhost_balloon.vm.settings import settings_to_json
from vhost_balloon.vm.snapshot import VmStatistics

Read = Callable[[Any], Json]


def describe_vm(vm: VmStatistics) -> Object:
    """One element of query-vms."""
    return _members(vm, _VM)


def names(bits: int, *kinds: Iterable[enum.IntFlag]) -> list[str]:
    """Names of the set bits, lowest first; "bit-N" for a bit without a name in kinds."""
    known = {int(flag): str(flag.name) for kind in kinds for flag in kind}
    masks = [1 << bit for bit in range(bits.bit_length()) if bits >> bit & 1]
    return [
        known.get(mask, f"bit-{mask.bit_length() - 1}").lower().replace("_", "-") for mask in masks
    ]


def _members(source: object, readers: Mapping[str, Read]) -> Object:
    """The members of source that are known."""
    found = {name: read(source) for name, read in readers.items()}
    return {name: value for name, value in found.items() if value is not None}


def _readers(
    members: Iterable[str], special: Mapping[str, Read], of_counters: Collection[str] = ()
) -> dict[str, Read]:
    """Readers of members by name; of_counters: attributes that are read from `counters`."""
    readers = dict(special)
    for name in (member.removeprefix("*") for member in members):
        attribute = name.replace("-", "_")
        path = f"counters.{attribute}" if attribute in of_counters else attribute
        readers.setdefault(name, attrgetter(path))
    return readers


def _queues(vm: VmStatistics) -> Json:
    return [_members(queue, _QUEUE) for queue in vm.queues]


def _regions(vm: VmStatistics) -> Json:
    return [_members(region, _REGION) for region in vm.regions]


def _ring_errors(vm: VmStatistics) -> Json:
    """By ring, then by reason."""
    found: dict[str, dict[str, int]] = {}
    for (ring, reason), count in vm.counters.ring_errors.items():
        found.setdefault(ring, {})[reason.value] = count
    return found


def _discard_seconds(vm: VmStatistics) -> Json:
    histogram = vm.counters.discard_seconds
    return {"counts": list(histogram.counts), "sum": histogram.sum}


_REGION: Final = _readers(PARTS["VmRegion"], {})
_HUGE_PAGES: Final = _readers(PARTS["HugePages"], {"waiting-bytes": attrgetter("waiting")})
_QUEUE: Final = _readers(
    PARTS["VmQueue"], {"queue": lambda queue: queue.queue and queue.queue.value}
)
_VM: Final = _readers(
    VM_INFO,
    {
        "state": lambda vm: vm.state.value,
        "settings": lambda vm: vm.settings and settings_to_json(vm.settings),
        "socket-path": lambda vm: vm.socket_path and name_text(str(vm.socket_path)),
        "features": lambda vm: names(vm.features, BalloonFeature, VhostFeature, RingFeature),
        "protocol-features": lambda vm: names(vm.protocol_features, ProtocolFeature),
        "queues": _queues,
        "regions": _regions,
        "pause-reasons": lambda vm: list(vm.pause_reasons),
        "stats": lambda vm: {STAT_NAMES[tag]: value for tag, value in vm.stats.items()},
        "huge-pages": lambda vm: vm.huge_pages and _members(vm.huge_pages, _HUGE_PAGES),
        "internal-errors": lambda vm: {where: n for where, n in vm.internal_errors.items() if n},
        "refused-bytes": lambda vm: dict(vm.counters.refused_bytes),
        "refused-ranges": lambda vm: dict(vm.counters.refused_ranges),
        "requests": lambda vm: {queue.value: n for queue, n in vm.counters.requests.items()},
        "ring-errors": _ring_errors,
        "discard-seconds": _discard_seconds,
    },
    [field.name for field in fields(Counters)],
)

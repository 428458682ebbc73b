"""The objects of qom-get, qom-set and qom-list: QEMU's tree as far as it leads to the balloon.

    /machine/peripheral/VM                  virtio-balloon-pci
    /machine/peripheral/VM/virtio-backend   virtio-balloon-device

Types and properties have QEMU's names, by which scripts find the balloon. Properties of PCI and of
virtio in general belong to the device in QEMU, and are left out.

Source: QEMU qom/object.c (paths), hw/virtio/virtio-balloon.c (properties).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from protocol.qmp import Json
from protocol.virtio_balloon import STAT_NAMES, STAT_UNKNOWN, BalloonFeature
from vhost_balloon.errors import CommandError
from vhost_balloon.qmp_server.command import check_type
from vhost_balloon.vm.vm import Vm

UINT32_MAX: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Property:
    """type: as in qom-list. write: raises CommandError; None if it is read only."""

    type: str
    read: Callable[[Vm], Json]
    write: Callable[[Vm, Json], None] | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """An object. Its children are properties as well, whose value is their path."""

    type: str
    path: str
    properties: Mapping[str, Property] = field(default_factory=dict)
    children: Mapping[str, Node] = field(default_factory=dict)

    def all_properties(self) -> Mapping[str, Property]:
        children = {name: _link(child) for name, child in self.children.items()}
        return {**children, "type": Property("string", lambda vm: self.type), **self.properties}


def guest_stats(vm: Vm) -> Json:
    """The last sample. A statistic that the guest did not give is 2^64-1."""
    statistics = vm.statistics(details=False)
    stats = {name: statistics.stats.get(tag, STAT_UNKNOWN) for tag, name in STAT_NAMES.items()}
    return {"stats": stats, "last-update": statistics.stats_last_update}


def _polling_interval(vm: Vm) -> Json:
    """An integer as in QEMU, unless the operator's option set a fraction of a second."""
    interval = vm.stats_interval
    return int(interval) if interval == int(interval) else interval


def _set_polling_interval(vm: Vm, value: Json) -> None:
    seconds = check_type(POLLING_INTERVAL, "int", value)
    if seconds < 0:
        raise CommandError("timer value must be greater than zero")
    if seconds > UINT32_MAX:
        raise CommandError("timer value is too big")
    vm.stats_interval = float(seconds)


def _feature(bit: BalloonFeature) -> Property:
    """Whether a feature is offered."""
    return Property("bool", lambda vm: bool(vm.settings.offered & bit))


def _link(child: Node) -> Property:
    return Property(f"child<{child.type}>", lambda vm: child.path)


POLLING_INTERVAL: Final = "guest-stats-polling-interval"

_BALLOON: Final[Mapping[str, Property]] = {
    "deflate-on-oom": _feature(BalloonFeature.DEFLATE_ON_OOM),
    "free-page-hint": _feature(BalloonFeature.FREE_PAGE_HINT),
    "free-page-reporting": _feature(BalloonFeature.PAGE_REPORTING),
    "guest-stats": Property("guest statistics", guest_stats),
    POLLING_INTERVAL: Property("int", _polling_interval, _set_polling_interval),
    "page-poison": _feature(BalloonFeature.PAGE_POISON),
}


def tree(vm_id: str) -> Node:
    """The root, for a VM of this name."""
    peripheral = "/machine/peripheral"
    path = f"{peripheral}/{vm_id}"
    backend = Node("virtio-balloon-device", f"{path}/virtio-backend", _BALLOON)
    device = Node("virtio-balloon-pci", path, _BALLOON, {"virtio-backend": backend})
    containers = {
        "peripheral": Node("container", peripheral, children={vm_id: device}),
        "peripheral-anon": Node("container", f"{peripheral}-anon"),
    }
    machine = Node("machine", "/machine", children=containers)
    return Node("container", "/", children={"machine": machine})


def find(root: Node, path: str) -> list[Node]:
    """The objects that a path names; more than one if it is ambiguous.

    A path without a leading slash is partial: it starts at any object. Slashes in excess do not
    count.
    """
    parts = [part for part in path.split("/") if part]
    starts = [root] if path.startswith("/") else _all(root)
    return [found for start in starts if (found := _descend(start, parts)) is not None]


def _all(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children.values():
        yield from _all(child)


def _descend(node: Node, parts: list[str]) -> Node | None:
    for part in parts:
        if part not in node.children:
            return None
        node = node.children[part]
    return node

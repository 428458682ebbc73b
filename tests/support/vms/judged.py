"""A guest that shares more than it has, and says in its statistics what it has."""

from __future__ import annotations

from typing import Final

from protocol.virtio_balloon import Queue, StatTag
from tests.support.end_to_end import MIB, ByHand, Host
from vhost_balloon.simulator.memory import GuestRam

RAM: Final = 512 * MIB
ABOVE: Final = 1 << 32


def with_more(size: int = 2048 * MIB) -> GuestRam:
    """RAM, and a region above it that the guest does not have: an empty virtio-mem device."""
    ram = GuestRam.create(RAM)
    ram.add(size, ABOVE)
    return ram


def give(guest: ByHand, total: int | None) -> None:
    """Give a sample, without a total if it is None. The daemon keeps it until it wants another."""
    ring = guest.rings[Queue.STATS]
    ring.add([guest.stats({StatTag.MEMFREE: MIB} if total is None else {StatTag.MEMTOT: total})])
    ring.kick()


def figures(host: Host) -> tuple[int, int, int]:
    """Guest memory, actual and target, in MiB."""
    now = host.vm().statistics()
    memory, actual, target = ((n or 0) // MIB for n in (now.guest_memory, now.actual, now.target))
    return memory, actual, target

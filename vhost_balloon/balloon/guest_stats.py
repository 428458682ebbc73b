"""Guest memory statistics: the last sample and its age. Pure.

Source: virtio specification, "Memory Statistics"; last_update has QEMU's meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from protocol.virtio_balloon import STAT, STAT_VALUES_END, StatTag
from vhost_balloon.checked import Document, number, reading, real

_KNOWN = {int(tag): tag for tag in StatTag}


def parse_stats(data: bytes) -> tuple[dict[StatTag, int], int]:
    """Return what the guest knows of known tags, and the bytes of an incomplete entry at the end.

    Unknown tags are ignored. Of several entries with the same tag, the last one counts.
    """
    whole = len(data) - len(data) % STAT.size
    values = {_KNOWN[tag]: value for tag, value in STAT.iter_unpack(data[:whole]) if tag in _KNOWN}
    return _known(values), len(data) - whole


def _known(values: Mapping[StatTag, int]) -> dict[StatTag, int]:
    return {tag: value for tag, value in values.items() if value < STAT_VALUES_END}


@dataclass(slots=True)
class GuestStats:
    """The last sample.

    values: an entry for each tag that the guest gave a value of. last_update: host wall clock in
    whole seconds since the epoch; 0 before the first sample. taken: when it came, CLOCK_BOOTTIME in
    seconds. actual: bytes that the guest had outside its balloon then; None if that is unknown.
    """

    values: Mapping[StatTag, int] = field(default_factory=dict)
    last_update: int = 0
    taken: float | None = None
    actual: int | None = None

    def update(self, values: Mapping[StatTag, int], wall: float, now: float) -> None:
        """Replace the sample. Tags that the new one lacks become unknown, as in QEMU: the last
        value of a counter would look as if nothing had happened since."""
        self.values = dict(values)
        self.last_update = int(wall)
        self.taken = now
        self.actual = None

    def clear(self) -> None:
        self.values = {}
        self.last_update = 0
        self.taken = self.actual = None

    def age(self, now: float) -> float | None:
        """Seconds since the sample was taken, or None before the first."""
        return None if self.taken is None else max(now - self.taken, 0.0)


def stats_document(stats: GuestStats) -> Document:
    return {
        "values": [[int(tag), value] for tag, value in stats.values.items()],
        "last-update": stats.last_update,
        "updated": stats.taken,
        "actual": stats.actual,
    }


def restore_stats(stats: GuestStats, document: Document) -> None:
    """Raises StateError. Documents of earlier versions do not say what the guest had."""
    with reading("statistics"):
        values = {StatTag(number(tag)): number(value) for tag, value in document["values"]}
        last_update, updated = number(document["last-update"]), document["updated"]
        taken = None if updated is None else real(updated)
        actual = document.get("actual")
        actual = None if actual is None else number(actual)
    stats.values, stats.last_update = _known(values), last_update
    stats.taken, stats.actual = taken, actual

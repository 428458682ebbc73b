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
    whole seconds since the epoch; 0 before the first sample. updated_at: the host's monotonic clock
    in seconds.
    """

    values: Mapping[StatTag, int] = field(default_factory=dict)
    last_update: int = 0
    updated_at: float | None = None

    def update(self, values: Mapping[StatTag, int], wall: float, monotonic: float) -> None:
        """Replace the sample. Tags that the new one lacks become unknown, as in QEMU: the last
        value of a counter would look as if nothing had happened since."""
        self.values = dict(values)
        self.last_update = int(wall)
        self.updated_at = monotonic

    def clear(self) -> None:
        self.values = {}
        self.last_update = 0
        self.updated_at = None

    def age(self, monotonic: float) -> float | None:
        """Seconds since the sample was taken, or None before the first."""
        return None if self.updated_at is None else max(monotonic - self.updated_at, 0.0)


def stats_document(stats: GuestStats, clock_offset: float) -> Document:
    """clock_offset: seconds from updated_at's clock to a clock that survives this process."""
    updated = None if stats.updated_at is None else stats.updated_at + clock_offset
    return {
        "values": [[int(tag), value] for tag, value in stats.values.items()],
        "last-update": stats.last_update,
        "updated": updated,
    }


def restore_stats(stats: GuestStats, document: Document, clock_offset: float) -> None:
    """Raises StateError."""
    with reading("statistics"):
        values = {StatTag(number(tag)): number(value) for tag, value in document["values"]}
        last_update, updated = number(document["last-update"]), document["updated"]
        updated_at = None if updated is None else real(updated) - clock_offset
    stats.values, stats.last_update, stats.updated_at = _known(values), last_update, updated_at

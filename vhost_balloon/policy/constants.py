"""The rule's constants, in seconds and bytes. Only the reserve is a setting (settings.py)."""

from __future__ import annotations

from typing import Final

TICK: Final = 2.0
"""Between two decisions. A burst of 3 GiB takes 3 to 4 s."""
MIN_TICK: Final = 1.0
"""A tick that comes sooner after the last one is left out."""

REST: Final = 5 * TICK
"""Between two looks at a VM that is not squeezed, while the host is well: asking wakes."""

RESERVE: Final = 1 << 30
RESERVE_SHARE: Final = 0.08
"""The default reserve is RESERVE and this share of the host. Bursts have absolute sizes, so a part
is absolute."""

SLACK: Final = 0.2
MIN_SLACK: Final = 256 << 20
"""What a VM may allocate while nobody looks: this share of it, and no less than MIN_SLACK."""

STEP: Final = 16 << 20
"""The smallest change that is ordered."""

DISTRESS: Final = 0.25
"""A guest needs more once less than this part of the slack that it may keep is available."""
FAULTS: Final = 100.0
"""Major faults a second that show that cache in use was taken: 5 MiB/s at 50 KiB each, which is a
guess."""

FADE: Final = 300.0
"""The half-life of what a VM used lately."""

TAKEN_BACK: Final = 1 << 20
"""A guest whose memory grew by this without an order took it back: Linux takes 256 pages at a time
when it is out of memory (drivers/virtio/virtio_balloon.c)."""
PAGE_SIZE: Final = 4096
"""Targets are rounded up to whole pages."""

SILENT_TICKS: Final = 4
"""A guest that gave no statistics when it was asked so often in a row is silent: one that thrashes
does not answer. The age of a sample does not show it, because nobody asks while the hub is down."""

SILENT: Final = SILENT_TICKS * TICK
STALE: Final = 30.0
"""Age from which a sample is not believed: of a squeezed VM, which is asked every TICK, and of any
other."""

SILENT_SLACKS: Final = 2.0
"""A squeezed VM that stays silent is given slack beyond its peak for every SILENT_TICKS, up to so
many times. One alone left guests that could neither swap nor deflate dead in simulation."""

STUCK: Final = 10.0
HOLD: Final = 300.0
"""A guest that comes no STEP closer to its target for STUCK is left where it is, and not lowered
for HOLD: an unreachable target occupies one of its processors."""

PRESSURE: Final = 0.1
"""Share of a tick in which tasks waited for memory, from which MemAvailable is not believed."""
GIVE: Final = 0.05
"""Part of the surplus that is given back in a tick. Fast returns fill caches that are taken again.
"""

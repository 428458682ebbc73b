"""How much memory the guest has, of all that its front end shares. Pure.

QEMU's balloon counts RAM and DIMMs. QEMU shares more than that: an ivshmem, an NVDIMM, a
virtio-mem device as a whole, however little of it is plugged. Regions do not say what they are, so
their sum is held against the guest's own figure: at an order, and at the first sample of a driver.
A region that comes later counts until then, as a DIMM does in QEMU. A region counts as a whole or
not at all: a virtio-mem device counts once it is plugged almost in full. RAM above a hole is in the
same file as RAM below it, so it is known, however much of it the guest's kernel sets aside.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SHARE: Final = 10
TOLERANCE: Final = 128 << 20
"""Regions are left out if they exceed the guest's figure by more than 1/SHARE of it, and by more
than TOLERANCE bytes: a kernel does not count all that it uses itself."""


class GuestRam:
    """The shared regions, and which of them the guest does not have. Sizes in bytes."""

    def __init__(self, stated: int | None = None) -> None:
        self.stated = stated
        """The operator's word. It replaces judging, but the guest never has more than is shared."""
        self.total: int | None = None
        """What the guest has by its last sample, its balloon included; None if unknown."""
        self.judged = False
        """Whether regions were judged since this driver was loaded."""
        self.left_out: frozenset[int] = frozenset()
        """Guest addresses of the regions that do not count."""
        self.shared = 0
        """The sum of the regions."""
        self._regions: Mapping[int, int] = {}
        self._ram: frozenset[int] = frozenset()

    def share(self, regions: Mapping[int, int], files: Mapping[int, object] | None = None) -> None:
        """Replace the regions. New ones count.

        regions: sizes by guest address. files: identities of their files, where they are known. The
        lowest region, and those in the same file, always count.
        """
        self._regions = regions
        self.shared = sum(regions.values())
        self.left_out &= regions.keys()
        lowest, files = min(regions, default=0), files or {}
        same = {start for start, file in files.items() if file == files.get(lowest)}
        self._ram = frozenset({lowest, *same})

    @property
    def size(self) -> int:
        """The guest's memory; 0 before any is shared."""
        if self.stated is not None:
            return min(self.stated, self.shared)
        return self.shared - sum([self._regions[start] for start in self.left_out])

    def needs_sample(self) -> bool:
        """Whether an order needs a new figure of the guest: there is none yet, or by the last one,
        regions have to be left out, which the guest may have put to use since."""
        if self.stated is not None or self._regions.keys() <= self._ram:
            return False
        return self.total is None or self.shared > self._most()

    def judge(self) -> None:
        """Leave out regions until the rest fits the guest's figure.

        The smallest region that suffices goes; where none does, the largest, and then again.
        Without the guest's figure, the last judgement stands: its silence puts no memory online.
        """
        if self.total is None:
            return
        left_out: set[int] = set()
        excess = self.shared - self._most()
        doubtful = self._regions.keys() - self._ram
        candidates = sorted((self._regions[start], start) for start in doubtful)
        while excess > 0 and candidates:
            found = next((each for each in candidates if each[0] >= excess), candidates[-1])
            candidates.remove(found)
            left_out.add(found[1])
            excess -= found[0]
        self.left_out = frozenset(left_out)
        self.judged = True

    def new_driver(self) -> None:
        """A driver was loaded: judge at its first sample."""
        self.total, self.judged = None, False

    def _most(self) -> int:
        """The largest sum of regions that fits the guest's figure."""
        if self.total is None:
            return self.shared
        return self.total + max(self.total // SHARE, TOLERANCE)

"""The host's pool of huge pages, for tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from protocol.vhost_user_payloads import Region
from vhost_balloon.simulator import GuestRam, RamRegion, create_memfd

MIB: Final = 1 << 20


class HugePages:
    """The host's pool of huge pages, larger for the time of a test.

    Raises OSError where it cannot grow.
    """

    POOL: Final = Path("/proc/sys/vm/nr_hugepages")
    FREE: Final = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")

    def __init__(self, count: int) -> None:
        self._old = int(self.POOL.read_text())
        self._hogs: list[RamRegion] = []
        self.POOL.write_text(str(self._old + count))
        if int(self.POOL.read_text()) < self._old + count:
            self.close()
            raise OSError(f"the host has no {count} huge pages to spare")

    def free(self) -> int:
        return int(self.FREE.read_text())

    def ram(self, size: int, *, reserve: bool = True) -> GuestRam:
        return GuestRam.create(size, hugetlb=True, reserve=reserve)

    def exhaust(self) -> None:
        """Use all pages that are free."""
        size = self.free() * 2 * MIB
        region = RamRegion(create_memfd(size, hugetlb=True), Region(0, size, 0, 0))
        os.posix_fallocate(region.fd, 0, size)
        self._hogs.append(region)

    def close(self) -> None:
        for region in self._hogs:
            region.close()
        self.POOL.write_text(str(self._old))

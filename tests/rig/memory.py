"""The guest's RAM: QEMU's options for it, and the host memory it really uses."""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from typing import Any, Final, Literal

from tests.rig.process import fds, rss

MiB: Final = 1 << 20
GiB: Final = 1 << 30

Backing = Literal["memfd", "hugetlb", "file", "none"]
_RAM: Final = re.compile(r"/memfd:memory-backend-memfd|/dev/shm/qemu_back_mem")


@dataclass(frozen=True)
class Memory:
    """The RAM of a guest.

    Attributes:
        size: total bytes.
        backing: "memfd", "hugetlb" (memfd of 2 MiB pages; the pool must hold them), "file" (on
            tmpfs), or "none" (private anonymous memory, which vhost-user cannot use).
        nodes: NUMA nodes, each with its own backend and an equal share.
        slots: free slots for hot-plugged DIMMs of 1 GiB.
    """

    size: int = GiB
    backing: Backing = "memfd"
    nodes: int = 1
    slots: int = 0

    def arguments(self) -> list[str]:
        """QEMU's options for it, without -machine."""
        most = f",slots={self.slots},maxmem={self.size + self.slots * GiB}b" if self.slots else ""
        options = ["-m", f"{self.size}b{most}"]
        if self.backing == "none":
            return options
        for node in range(self.nodes):
            name = f"mem{node}"
            options += ["-object", json.dumps(self.backend(name, self.size // self.nodes))]
            if self.nodes > 1:
                options += ["-numa", f"node,nodeid={node},memdev={name}"]
        return options

    def machine(self) -> str:
        """The text to append to -machine."""
        single = self.backing != "none" and self.nodes == 1
        return ",memory-backend=mem0" if single else ""

    def backend(self, name: str, size: int) -> dict[str, Any]:
        """A memory backend object as -object and object-add take it."""
        properties: dict[str, Any] = {"id": name, "size": size, "share": True}
        if self.backing == "file":
            # Given a folder, QEMU creates a file there and unlinks it immediately.
            return properties | {"qom-type": "memory-backend-file", "mem-path": "/dev/shm"}
        if self.backing == "hugetlb":
            properties |= {"hugetlb": True, "hugetlbsize": 2 * MiB}
        return properties | {"qom-type": "memory-backend-memfd"}


def resident(pid: int) -> int:
    """Bytes the host spends on the RAM of QEMU process pid (RAM and swap, each file once).

    Without a memory backend this is the process's RSS, the closest approximation.
    """
    blocks: dict[tuple[int, int], int] = {}
    for number, link in fds(pid).items():
        if not _RAM.match(link):
            continue
        status = os.stat(f"/proc/{pid}/fd/{number}")
        if stat.S_ISREG(status.st_mode):
            blocks[status.st_dev, status.st_ino] = status.st_blocks
    return sum(blocks.values()) * 512 if blocks else rss(pid)

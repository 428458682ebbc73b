"""A static partition of the host, in proportion to the VMs' sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tests.policy.rule import HostView, Orders, VmView

SHARE: Final = 0.93
KEPT: Final = 2048.0
"""VMs are given this share of the host, less so many MiB for the host itself."""


class Static:
    """Partitions the host once, and again when another VM starts."""

    name = "static"
    period = 1

    def __init__(self) -> None:
        self._partitioned: set[str] = set()

    def tick(self, now: int, host: HostView, vms: Sequence[VmView]) -> Orders:
        if self._partitioned == {vm.name for vm in vms}:
            return {}, ()
        self._partitioned = {vm.name for vm in vms}
        part = (SHARE * host.total - KEPT) / sum(vm.size for vm in vms)
        return {vm.name: vm.size * min(1.0, part) for vm in vms}, ()

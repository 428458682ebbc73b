"""The operator's choices for the policy. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from vhost_balloon.policy.inputs import VmSettings, default_reserve


class Mode(enum.Enum):
    """DRY_RUN decides and explains, and orders nothing: it repeats its first step."""

    OFF = "off"
    DRY_RUN = "dry-run"
    ON = "on"


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """reserve: what is to stay available on the host, in bytes or as a share of it (a float below
    1); None for the default. cgroup: the folder of a memory cgroup that stands for the host, None
    for none. zfs_arc: whether ZFS gives its cache back when memory is short. vms: by name, as the
    operator spells it. names: the keys of vms by the names of the VMs, where they differ."""

    mode: Mode = Mode.OFF
    reserve: int | float | None = None
    cgroup: str | None = None
    zfs_arc: bool = False
    defaults: VmSettings = field(default_factory=VmSettings)
    vms: Mapping[str, VmSettings] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str) -> VmSettings:
        return self.vms.get(self.names.get(name, name), self.defaults)

    def reserve_of(self, total: int) -> int:
        """The reserve in bytes, above 0: at most half of the host, so that it can be reached."""
        return max(1, min(self.wanted_reserve(total), total // 2))

    def wanted_reserve(self, total: int) -> int:
        """The reserve in bytes as the operator wants it."""
        if self.reserve is None:
            return default_reserve(total)
        return self.reserve if isinstance(self.reserve, int) else int(self.reserve * total)

"""Memory beside the guest's RAM: DIMMs, virtio-mem, ivshmem and NVDIMMs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.rig.devices.hotplug import Properties, plug, unplug
from tests.rig.errors import RigTimeout
from tests.rig.guest import Guest
from tests.rig.memory import GiB
from tests.rig.waiting import wait_until

VIRTIO_MEM: Final = "vmem0"
STAYS_OFFLINE: Final = "memhp_default_state=offline"
"""Kernel argument with which a plugged DIMM is not used until online() is called."""
VIRTIO_MEM_KERNEL: Final = "rig.virtio_mem=1 memhp_default_state=online_movable"
"""Kernel arguments that load virtio-mem's driver and have all that it plugs used."""

_BLOCKS: Final = "/sys/devices/system/memory/memory*/state"


def plug_dimm(guest: Guest, name: str = "dimm0", timeout: float = 30) -> None:
    """Plug in a 1 GiB DIMM, and wait until the guest's kernel has found it."""
    before = _blocks(guest)
    backend = guest.memory.backend(f"{name}-memory", GiB)
    plug(guest, {"driver": "pc-dimm", "id": name, "memdev": backend["id"]}, backend)
    _wait(guest, "no DIMM", lambda: _blocks(guest) > before, timeout)


def unplug_dimm(guest: Guest, name: str = "dimm0", timeout: float = 60) -> None:
    """Unplug a DIMM. Raises RigTimeout if the guest does not release it."""
    unplug(guest, name, f"{name}-memory", timeout=timeout)


def online(guest: Guest, timeout: float = 60) -> None:
    """Have the guest use all of its memory, the DIMMs for movable pages alone: so they can go."""
    guest.run(
        f"for state in {_BLOCKS}; do"
        " grep -q offline $state && echo online_movable >$state; done; true",
        timeout,
    )


def hotplug_dimm(guest: Guest) -> None:
    """Plug in a 1 GiB DIMM and have the guest use it."""
    before = guest.meminfo()["MemTotal"]
    plug_dimm(guest)
    online(guest)
    _wait(guest, "no memory", lambda: guest.meminfo()["MemTotal"] > before + GiB // 2, 30)


def virtio_mem(size: int, requested: int = 0) -> tuple[str, ...]:
    """QEMU's options for a virtio-mem device of size bytes, of which the guest is to plug some."""
    return _options(
        {"driver": "virtio-mem-pci", "id": VIRTIO_MEM, "requested-size": requested},
        {"qom-type": "memory-backend-memfd", "size": size, "share": True, "reserve": False},
    )


def resize_virtio_mem(guest: Guest, size: int, timeout: float = 60) -> None:
    """Have the guest plug size bytes of its virtio-mem device, and wait until it has."""
    path = f"/machine/peripheral/{VIRTIO_MEM}"
    requested = {"path": path, "property": "requested-size", "value": size}
    guest.qmp.execute("qom-set", requested)
    plugged = {"path": path, "property": "size"}
    _wait(guest, "not plugged", lambda: guest.qmp.execute("qom-get", plugged) == size, timeout)


def ivshmem(size: int) -> tuple[str, ...]:
    """QEMU's options for memory that VMs share, as a PCI device's BAR. size: a power of two."""
    return _options(
        {"driver": "ivshmem-plain", "id": "ivshmem0"},
        {"qom-type": "memory-backend-memfd", "size": size, "share": True},
    )


def nvdimm(name: str, file: Path, *, share: bool = True, unarmed: bool = False) -> tuple[str, ...]:
    """QEMU's options for an NVDIMM whose contents are a file; each takes a slot.

    share: what the guest writes goes to the file. unarmed: the guest may only read.
    """
    backend = {
        "qom-type": "memory-backend-file",
        "mem-path": str(file),
        "size": file.stat().st_size,
        "share": share,
        "readonly": unarmed,
    }
    device = {"driver": "nvdimm", "id": name, "unarmed": unarmed}
    return ("-machine", "nvdimm=on", *_options(device, backend))


def _options(device: Properties, backend: Properties) -> tuple[str, ...]:
    name = f"{device['id']}-memory"
    return (
        *("-object", json.dumps({**backend, "id": name})),
        *("-device", json.dumps({**device, "memdev": name})),
    )


def _blocks(guest: Guest) -> int:
    return int(guest.run(f"ls {_BLOCKS} | wc -l"))


def _wait(guest: Guest, late: str, condition: Callable[[], bool], timeout: float) -> None:
    wait_until(condition, timeout, lambda: RigTimeout(f"{late}\n{guest.logs()}"), pause=0.3)

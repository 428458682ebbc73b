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

_IVSHMEM_PORT: Final = "ivshmem-port"
_BLOCKS: Final = "/sys/devices/system/memory/memory*/state"


def plug_dimm(guest: Guest, name: str = "dimm0", timeout: float = 30) -> None:
    """Plug in a 1 GiB DIMM, and wait until the guest's kernel has found it."""
    before = _blocks(guest)
    backend = guest.memory.backend(_backend_name(name), GiB)
    plug(guest, *_joined({"driver": "pc-dimm", "id": name}, backend))
    _wait(guest, "no DIMM", lambda: _blocks(guest) > before, timeout)


def unplug_dimm(guest: Guest, name: str = "dimm0", timeout: float = 60) -> None:
    """Unplug a DIMM. Raises RigTimeout if the guest does not release it."""
    unplug(guest, name, _backend_name(name), timeout=timeout)


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
    device = {"driver": "virtio-mem-pci", "id": VIRTIO_MEM, "requested-size": requested}
    backend = {"qom-type": "memory-backend-memfd", "size": size, "share": True, "reserve": False}
    return _options(*_joined(device, backend))


def resize_virtio_mem(guest: Guest, size: int, timeout: float = 60) -> None:
    """Have the guest plug size bytes of its virtio-mem device, and wait until it has."""
    path = f"/machine/peripheral/{VIRTIO_MEM}"
    requested = {"path": path, "property": "requested-size", "value": size}
    guest.qmp.execute("qom-set", requested)
    plugged = {"path": path, "property": "size"}
    _wait(guest, "not plugged", lambda: guest.qmp.execute("qom-get", plugged) == size, timeout)


def ivshmem(size: int) -> tuple[str, ...]:
    """QEMU's options for memory that VMs share, as a PCI device's BAR, and a port for more of it.

    size: a power of two.
    """
    port = f"pcie-root-port,id={_IVSHMEM_PORT},chassis=2,mem-reserve={size}"
    return (*_options(*_ivshmem("ivshmem0", size)), "-device", port)


def plug_ivshmem(guest: Guest, size: int) -> None:
    """Plug more of it in that port."""
    device, backend = _ivshmem("ivshmem1", size)
    plug(guest, {**device, "bus": _IVSHMEM_PORT}, backend)


def unplug_ivshmem(guest: Guest) -> None:
    """Unplug what was plugged in that port."""
    unplug(guest, "ivshmem1", _backend_name("ivshmem1"))


def _ivshmem(name: str, size: int) -> tuple[Properties, Properties]:
    """The device and its backend."""
    backend = {"qom-type": "memory-backend-memfd", "size": size, "share": True}
    return _joined({"driver": "ivshmem-plain", "id": name}, backend)


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
    return ("-machine", "nvdimm=on", *_options(*_joined(device, backend)))


def _backend_name(device: str) -> str:
    return f"{device}-memory"


def _joined(device: Properties, backend: Properties) -> tuple[Properties, Properties]:
    """A device that uses a backend, which is named after it."""
    name = _backend_name(device["id"])
    return {**device, "memdev": name}, {**backend, "id": name}


def _options(device: Properties, backend: Properties) -> tuple[str, ...]:
    """QEMU's options for both."""
    return ("-object", json.dumps(backend), "-device", json.dumps(device))


def _blocks(guest: Guest) -> int:
    return int(guest.run(f"ls {_BLOCKS} | wc -l"))


def _wait(guest: Guest, late: str, condition: Callable[[], bool], timeout: float) -> None:
    wait_until(condition, timeout, lambda: RigTimeout(f"{late}\n{guest.logs()}"), pause=0.3)

"""QEMU's command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from tests.rig.inside.initramfs import Kernel
from tests.rig.memory import Memory
from tests.rig.provisioning.packages import QEMU

DEVICE_ID: Final = "balloon0"
PORT: Final = "port0"
_CHARDEV: Final = "bln"
# Saves a fifth of the boot time under TCG, and skips checks of the TSC, unstable under TCG.
_KERNEL_ARGUMENTS: Final = (
    "console=ttyS1 tsc=reliable no_timer_check cryptomgr.notests rcupdate.rcu_expedited=1"
)


def program() -> list[str]:
    """Command of the provisioned QEMU, run by its own dynamic linker with its own libraries."""
    tree = QEMU.folder
    return [
        f"{tree}/usr/lib64/ld-linux-x86-64.so.2",
        *("--library-path", f"{tree}/usr/lib/x86_64-linux-gnu"),
        f"{tree}/usr/bin/qemu-system-x86_64",
        *("-L", f"{tree}/usr/share/qemu"),
        *("-L", f"{tree}/usr/share/seabios"),
    ]


def base_arguments(folder: Path, memory: Memory, accel: str, cpus: int) -> list[str]:
    """Machine, memory, console (ttyS0), kernel log (ttyS1) and QMP, with sockets in folder."""
    return [
        *("-name", "rig", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", f"q35{memory.machine()}"),
        *("-accel", accel, "-smp", str(cpus)),
        *(("-cpu", "host") if accel == "kvm" else ()),
        *memory.arguments(),
        # QEMU waits for us, so that no guest output is lost.
        *("-chardev", f"socket,id=console,path={folder}/console.sock,server=on,wait=on,"
          f"logfile={folder}/console.log"),
        *("-serial", "chardev:console"),
        *("-serial", f"file:{folder}/kernel.log"),
        *("-qmp", f"unix:{folder}/qmp.sock,server=on,wait=off"),
    ]  # fmt: skip


def kernel_arguments(kernel: Kernel, extra: str) -> list[str]:
    """Direct boot of kernel with extra kernel arguments."""
    return [
        *("-kernel", str(kernel.image), "-initrd", str(kernel.initramfs)),
        *("-append", f"{_KERNEL_ARGUMENTS} {extra}".strip()),
    ]


def balloon_arguments(balloon: Path | str | None, *, port: bool) -> list[str]:
    """A balloon, see Guest, and the port that it is plugged in, if it is to be unplugged."""
    if balloon is None:
        return []
    own = balloon == "qemu"
    device = own_balloon() if own else vhost_user_balloon()
    return [
        *(() if own else ("-chardev", f"socket,id={_CHARDEV},path={balloon}")),
        *(("-device", f"pcie-root-port,id={PORT},chassis=1") if port else ()),
        *("-device", json.dumps(device | {"bus": PORT} if port else device)),
    ]


def vhost_user_balloon() -> dict[str, Any]:
    """The device of a back end that the chardev is connected to, as device_add takes it."""
    return {
        "driver": "vhost-user-test-device-pci",
        "id": DEVICE_ID,
        "chardev": _CHARDEV,
        "virtio-id": 5,
        "num_vqs": 5,
        "config_size": 16,
    }


def own_balloon() -> dict[str, Any]:
    """QEMU's in-process balloon, for comparisons."""
    features = {"free-page-reporting": True, "deflate-on-oom": True}
    return {"driver": "virtio-balloon-pci", "id": DEVICE_ID} | features

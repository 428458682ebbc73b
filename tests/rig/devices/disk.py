"""An NVMe controller, for which the guest's kernel needs no module, and its disks."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.rig.guest import Guest
from tests.rig.memory import GiB

ENDLESS: Final = "/dev/disk1"
SWAP: Final = "/dev/disk2"


def endless_and_swap(bytes_per_second: int, swap: Path) -> tuple[str, ...]:
    """QEMU's options for both disks.

    Args:
        bytes_per_second: at which ENDLESS is read: 1 TiB of zeros, which cost the host nothing.
        swap: the file behind SWAP.
    """
    zeros = f"file.driver=null-co,file.size={1024 * GiB},file.read-zeroes=on"
    return (
        *("-device", "nvme,id=nvme0,serial=rig"),
        *_namespace(1, f"{zeros},throttling.bps-read={bytes_per_second}"),
        *_namespace(2, f"file={swap}"),
    )


def name_disks(guest: Guest) -> None:
    """Make ENDLESS and SWAP: the kernel names disks in the order in which it finds them."""
    guest.run(
        "for disk in /sys/block/nvme*; do ln -s /dev/${disk##*/} /dev/disk$(cat $disk/nsid); done"
    )


def _namespace(number: int, drive: str) -> tuple[str, ...]:
    name = f"disk{number}"
    return (
        *("-drive", f"if=none,id={name},format=raw,{drive}"),
        *("-device", f"nvme-ns,bus=nvme0,drive={name},nsid={number}"),
    )

"""The guest's initramfs: busybox, two drivers and guest_init.sh, as a newc archive."""

from __future__ import annotations

import hashlib
import lzma
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.rig.provisioning.packages import (
    BUSYBOX,
    CLOUD_KERNEL,
    GENERIC_KERNEL,
    Tree,
    cache_folder,
)

KERNELS: Final = {"cloud": CLOUD_KERNEL, "generic": GENERIC_KERNEL}
# Both kernels have the virtio core, its PCI transport, tmpfs and the serial port built in.
MODULES: Final = ("drivers/virtio/virtio_balloon.ko.xz", "drivers/virtio/virtio_mem.ko.xz")
_FOLDERS: Final = ("bin", "dev", "lib", "lib/modules", "proc", "run", "sys", "tmp")
_INIT: Final = Path(__file__).with_name("guest_init.sh")


@dataclass(frozen=True)
class Kernel:
    """The files QEMU needs to boot a guest.

    Attributes:
        image: vmlinuz.
        initramfs: uncompressed newc archive.
        release: as uname -r prints it.
    """

    image: Path
    initramfs: Path
    release: str


def kernel(flavour: str) -> Kernel:
    """Find the provisioned kernel of that flavour; build its initramfs if necessary.

    Args:
        flavour: "cloud" or "generic" (PAGE_POISONING=y).
    """
    tree = KERNELS[flavour]
    (image,) = tree.folder.glob("boot/vmlinuz-*")
    archive = _archive(tree)
    digest = hashlib.sha256(archive).hexdigest()[:10]
    path = cache_folder() / "initramfs" / f"{tree.name}-{digest}.cpio"
    if not path.exists():
        _write(path, archive)
    return Kernel(image, path, image.name.removeprefix("vmlinuz-"))


def _write(path: Path, data: bytes) -> None:
    """Write and rename, so that a guest starting meanwhile never sees a partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, staged = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    Path(staged).rename(path)


def _archive(tree: Tree) -> bytes:
    entries = [_entry(name, stat.S_IFDIR | 0o755) for name in _FOLDERS]
    entries.append(_entry("init", stat.S_IFREG | 0o755, _INIT.read_bytes()))
    busybox = (BUSYBOX.folder / "usr/bin/busybox").read_bytes()
    entries.append(_entry("bin/busybox", stat.S_IFREG | 0o755, busybox))
    # The init script's interpreter must exist before the script can install the other links.
    entries.append(_entry("bin/sh", stat.S_IFLNK | 0o777, b"busybox"))
    for module in MODULES:
        (packed,) = tree.folder.glob(f"usr/lib/modules/*/kernel/{module}")
        name = f"lib/modules/{packed.name.removesuffix('.xz')}"
        entries.append(_entry(name, stat.S_IFREG | 0o644, lzma.decompress(packed.read_bytes())))
    entries.append(_entry("TRAILER!!!", 0))
    return b"".join(entries)


def _entry(name: str, mode: int, data: bytes = b"") -> bytes:
    """One newc entry (kernel: Documentation/driver-api/early-userspace/buffer-format.rst)."""
    path = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    # inode, mode, uid, gid, links, mtime, size, device (4 fields), length of the name, checksum
    fields = (0, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(path), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + path) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)

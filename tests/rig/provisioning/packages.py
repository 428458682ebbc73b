"""Provision the rig: trees of unpacked Debian packages in a cache folder, without root.

Each tree is made in a staging folder, checked, stamped with its package versions and renamed
into place, so a tree that exists is complete. No tree depends on another, nor on an earlier
provisioning. A tree's folder name contains a digest of its recipe: changing a recipe makes a new
tree and leaves those in use alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.rig.errors import RigUnavailable
from tests.rig.provisioning.apt import PrivateApt, unpack
from tests.rig.provisioning.sources import debian_archives

_LOCK_SECONDS: Final = 1200.0


@dataclass(frozen=True)
class Tree:
    """A recipe: packages to unpack together into one folder.

    Attributes:
        packages: the requested packages.
        backports: patterns of the packages that come from backports.
        dependencies: also unpack all dependencies of the packages.
        meta: packages are meta packages; take their dependencies whose name starts with this.
        keep: globs of the unpacked files to keep; empty keeps all.
        must_have: globs that must all match for the tree to count as complete.
    """

    name: str
    packages: tuple[str, ...]
    backports: tuple[str, ...] = ()
    dependencies: bool = False
    meta: str = ""
    keep: tuple[str, ...] = ()
    must_have: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def folder(self) -> Path:
        """Where the tree is, or will be."""
        digest = hashlib.sha256(repr(self).encode()).hexdigest()[:10]
        return cache_folder() / "trees" / f"{self.name}-{digest}"

    def is_there(self) -> bool:
        """Whether it was made and no part of it has been removed since."""
        return (self.folder / _STAMP).is_file() and not self.lacking(self.folder)

    def lacking(self, folder: Path) -> list[str]:
        """The patterns of must_have without a match in folder."""
        return [
            pattern
            for pattern in self.must_have
            if not any(path.exists() for path in folder.glob(pattern))
        ]

    def versions(self) -> Mapping[str, str]:
        """Package name -> version, as stamped when the tree was made."""
        stamp = json.loads((self.folder / _STAMP).read_text())
        return {str(name): str(version) for name, version in stamp.items()}


_STAMP: Final = "rig-stamp.json"
_KERNEL_FILES: Final = (
    "boot/vmlinuz-*",
    "boot/config-*",
    "usr/lib/modules/*/kernel/drivers/virtio/*",
)

QEMU: Final = Tree(
    "qemu",
    ("qemu-system-x86",),
    backports=("qemu-*", "seabios", "ipxe-qemu"),
    dependencies=True,
    must_have=(
        "usr/bin/qemu-system-x86_64",
        "usr/lib64/ld-linux-x86-64.so.2",
        "usr/share/seabios/bios-256k.bin",
    ),
)
CLOUD_KERNEL: Final = Tree(
    "kernel-cloud",
    ("linux-image-cloud-amd64",),
    meta="linux-image-",
    keep=_KERNEL_FILES,
    must_have=_KERNEL_FILES,
)
GENERIC_KERNEL: Final = Tree(
    "kernel-generic",
    ("linux-image-amd64",),
    meta="linux-image-",
    keep=_KERNEL_FILES,
    must_have=_KERNEL_FILES,
)
BUSYBOX: Final = Tree("busybox", ("busybox-static",), must_have=("usr/bin/busybox",))
TREES: Final = (QEMU, CLOUD_KERNEL, GENERIC_KERNEL, BUSYBOX)
"""The trees that guests need."""

PROMETHEUS: Final = Tree(
    "prometheus",
    ("prometheus", "promtool", "libc6"),  # all the two programs need to run
    keep=("usr/bin/prom*", "usr/lib64/*", "usr/lib/x86_64-linux-gnu/*.so*"),
    must_have=("usr/bin/prometheus", "usr/bin/promtool", "usr/lib64/ld-linux-x86-64.so.2"),
)
MANDOC: Final = Tree(
    "mandoc",
    ("mandoc", "zlib1g", "libc6"),
    keep=("usr/bin/mandoc", "usr/lib64/*", "usr/lib/x86_64-linux-gnu/*.so*"),
    must_have=("usr/bin/mandoc", "usr/lib64/ld-linux-x86-64.so.2"),
)
SYSTEMD: Final = Tree(
    "systemd",
    (
        *("systemd", "base-files", "base-passwd", "bash", "dash", "dbus"),
        *("coreutils", "util-linux", "mount", "libc-bin", "grep", "sed"),
        # The wheel's dependencies, all of them in Debian.
        *("python3", "python3-venv", "python3-trio", "python3-construct"),
        "python3-prometheus-client",
    ),
    dependencies=True,
    must_have=(
        "usr/lib/systemd/systemd",
        "usr/lib64/ld-linux-x86-64.so.2",
        "usr/bin/systemd-analyze",
        "usr/bin/python3",
        "usr/lib/python3/dist-packages/trio",
    ),
)
"""The part of Debian that systemd as PID 1 and the daemon need; no maintainer script ran."""
EVERY_TREE: Final = (*TREES, PROMETHEUS, MANDOC, SYSTEMD)


def cache_folder() -> Path:
    """VHOST_BALLOON_RIG, or vhost-balloon/rig below the user's cache folder."""
    override = os.environ.get("VHOST_BALLOON_RIG")
    if override:
        return Path(override).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "vhost-balloon/rig"


def provision(trees: tuple[Tree, ...] = TREES) -> None:
    """Ensure that trees exist; quick if they do.

    Raises:
        RigUnavailable: not all can be provisioned here. Those that can, have been.
    """
    if all(tree.is_there() for tree in trees):
        return
    _check_host()
    try:
        with _locked():
            missing = [tree for tree in trees if not tree.is_there()]
            if missing:
                _make_all(missing)
    except OSError as error:
        raise RigUnavailable(f"its cache folder cannot be used: {error}") from error


def progress(text: str) -> None:
    """Report progress to the waiting user on stderr."""
    print(f"rig: {text}", file=sys.stderr, flush=True)


def _check_host() -> None:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise RigUnavailable(f"needs Linux on x86-64, this is {platform.platform()}")
    for tool in ("apt-get", "apt-cache", "apt-config", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise RigUnavailable(f"needs {tool} (a Debian host)")


@contextmanager
def _locked() -> Iterator[None]:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        _take(lock.fileno())
        yield


def _take(lock: int) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    waiting = False
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waiting:
                progress("waiting for another provisioning to finish")
            waiting = True
            if time.monotonic() > deadline:
                raise RigUnavailable("another provisioning holds the lock") from None
            time.sleep(0.5)
        else:
            return


def _make_all(trees: list[Tree]) -> None:
    """Make the trees in one staging folder, which is always removed.

    If one cannot be made, the others still are.
    """
    cache = cache_folder()
    for leftover in cache.glob("staging-*"):  # from a killed run: we hold the lock
        shutil.rmtree(leftover, ignore_errors=True)
    fetched: list[int] = []
    failures: dict[str, str] = {}
    with tempfile.TemporaryDirectory(
        prefix="staging-", dir=cache, ignore_cleanup_errors=True
    ) as staging:
        apt = _open_archive(Path(staging))
        for tree in trees:
            try:
                fetched += _make(tree, apt, Path(staging))
            except (RigUnavailable, OSError) as error:
                failures[tree.name] = str(error)
                progress(f"{tree.name} cannot be had: {error}")
    progress(f"fetched {_amount(fetched)} in all, for {cache}")
    if failures:
        text = "; ".join(f"{name}: {reason}" for name, reason in failures.items())
        raise RigUnavailable(text, failures)


def _open_archive(staging: Path) -> PrivateApt:
    """Open the host's first archive that has our suites under a trusted signature."""
    etc_apt = Path("/etc/apt")
    failures = []
    for number, archive in enumerate(debian_archives(etc_apt)[:4]):
        progress("reading the package index of the host's Debian archive")
        apt = PrivateApt(staging / f"apt{number}", etc_apt)
        try:
            apt.open(archive)
        except RigUnavailable as error:
            failures.append(error.reason)
        else:
            return apt
    raise RigUnavailable("; ".join(failures) or "the host's apt knows no Debian archive")


def _make(tree: Tree, apt: PrivateApt, staging: Path) -> list[int]:
    """Fetch, unpack, check and install a tree; return the package sizes in bytes."""
    started = time.monotonic()
    progress(f"fetching {tree.name}")
    packages = _fetch(tree, apt)
    sizes = [package.stat().st_size for package in packages]
    unpacked = staging / tree.name
    for package in packages:
        unpack(package, unpacked)
    if tree.keep:
        unpacked = _pruned(unpacked, tree.keep)
    if lacking := tree.lacking(unpacked):
        raise RigUnavailable(f"the packages hold no {', '.join(lacking)}")
    (unpacked / _STAMP).write_text(json.dumps(_versions(packages), indent=1, sort_keys=True))
    _put(unpacked, tree.folder)
    progress(f"{tree.name} ready: {_amount(sizes)} ({time.monotonic() - started:.0f} s)")
    return sizes


def _put(unpacked: Path, folder: Path) -> None:
    """Move a tree into place, replacing the remains of a partly removed one."""
    folder.parent.mkdir(exist_ok=True)
    if folder.exists():
        shutil.rmtree(folder)
    unpacked.rename(folder)


def _amount(sizes: list[int]) -> str:
    return f"{len(sizes)} packages, {sum(sizes) / 1e6:.1f} MB"


def _fetch(tree: Tree, apt: PrivateApt) -> list[Path]:
    apt.prefer_backports(tree.backports)  # first: the dependencies of meta packages follow from it
    names = list(tree.packages)
    if tree.meta:
        depended_on = [name for meta in names for name in apt.dependencies(meta)]
        names = [name for name in depended_on if name.startswith(tree.meta)]
    packages = apt.download(names) if tree.dependencies else apt.download_alone(names)
    if lacking := sorted(set(names) - _versions(packages).keys()):
        raise RigUnavailable(f"apt did not fetch {', '.join(lacking)}")
    return packages


def _pruned(unpacked: Path, keep: tuple[str, ...]) -> Path:
    """Move the files that keep names to a separate folder: a kernel's modules are 100 MB."""
    kept = unpacked.with_name(unpacked.name + "-kept")
    for pattern in keep:
        for path in list(unpacked.glob(pattern)):
            target = kept / path.relative_to(unpacked)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    return kept


def _versions(packages: list[Path]) -> dict[str, str]:
    """Parse file names, NAME_VERSION_ARCHITECTURE.deb; apt writes a colon as %3a."""
    split = (package.name.split("_") for package in packages)
    return {name: version.replace("%3a", ":") for name, version, _ in split}

"""Finds the accelerator that really works here, by booting a guest with it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from tests.rig.provisioning.packages import QEMU, cache_folder


def accelerator(boots_under_kvm: Callable[[], bool]) -> str:
    """VHOST_BALLOON_ACCEL if set, else "kvm" where a guest boots with it, else "tcg".

    Opening /dev/kvm proves little: in some clouds it exists but guests fail early. The answer is
    cached until the host's next boot.
    """
    chosen = os.environ.get("VHOST_BALLOON_ACCEL")
    if chosen:
        return chosen
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    cache = cache_folder() / "accel.json"
    key = f"{_boot_id()} {QEMU.folder.name} {os.getuid()}"
    known = _read(cache)
    if key not in known:
        known = {key: "kvm" if boots_under_kvm() else "tcg"}
        staged = cache.with_suffix(f".{os.getpid()}")
        staged.write_text(json.dumps(known))
        staged.rename(cache)
    return known[key]


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _read(cache: Path) -> dict[str, str]:
    try:
        known: dict[str, str] = json.loads(cache.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return known

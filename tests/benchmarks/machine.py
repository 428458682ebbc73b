"""Describes the machine that the figures were measured on."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks.priority import permitted
from tests.rig.provisioning.packages import TREES
from vhost_balloon.sizes import format_size


def machine() -> dict[str, str]:
    """Return the facts to publish beside every figure."""
    info = Path("/proc/cpuinfo").read_text()
    models = re.findall(r"^model name\s*:\s*(.*)$", info, re.MULTILINE)
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    packages = {name: text for tree in TREES for name, text in tree.versions().items()}
    return {
        "kernel": f"{platform.system()} {platform.release()}",
        "processor": models[0] if models else platform.machine(),
        "cores": str(os.cpu_count()),
        "memory": format_size(int(memory[1]) << 10) if memory else "unknown",
        "python": sys.version.split()[0],
        "trio": version("trio"),
        "qemu": packages.get("qemu-system-x86", "unknown"),
        "real-time priority": "permitted" if permitted() else "not permitted",
        "shmem huge pages": _setting("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
    }


def load() -> float:
    """Return the one-minute load average."""
    return os.getloadavg()[0]


def _setting(path: str) -> str:
    """Return the selected word of a file such as "always [never]"."""
    try:
        text = Path(path).read_text()
    except OSError:
        return "unknown"
    chosen = re.search(r"\[(\w+)\]", text)
    return chosen[1] if chosen else text.strip()

"""Finds how much memory this machine, or the container around us, has available."""

from __future__ import annotations

from pathlib import Path


def available_memory(root: Path = Path("/")) -> int:
    """Return the lesser of the kernel's MemAvailable and the room in our memory cgroups, in bytes.

    Args:
        root: the folder that contains proc and sys.
    """
    values = {}
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        values[name] = int(value.split()[0]) << 10
    return min([values.get("MemAvailable", 0), *_left_in_cgroups(root)])


def _left_in_cgroups(root: Path) -> list[int]:
    """Return the bytes left in each of our memory cgroups (version 2), the innermost first."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    path = next((line[3:] for line in groups if line.startswith("0::")), "/")
    folder = root / "sys/fs/cgroup"
    inner = folder / path.lstrip("/")
    left = []
    for group in (inner, *inner.parents):
        if not group.is_relative_to(folder):
            break
        try:
            limit = (group / "memory.max").read_text().strip()
            current = int((group / "memory.current").read_text())
        except (OSError, ValueError):
            continue  # no limit in the root group, or without the memory controller
        if limit.isdecimal():
            left.append(max(0, int(limit) - current))
    return left

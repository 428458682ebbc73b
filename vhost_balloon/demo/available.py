"""How much memory this machine, or the container that we are in, can still give."""

from __future__ import annotations

from pathlib import Path


def available_memory(root: Path = Path("/")) -> int:
    """Return bytes: the kernel's MemAvailable, or what a memory cgroup leaves if that is less.

    Args:
        root: where proc and sys are found.
    """
    values = {}
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        values[name] = int(value.split()[0]) << 10
    return min([values.get("MemAvailable", 0), *_left_in_cgroups(root)])


def _left_in_cgroups(root: Path) -> list[int]:
    """What each memory cgroup (version 2) that we are in still allows, the innermost first."""
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
            continue  # the root group has no limit, nor has one without the controller
        if limit.isdecimal():
            left.append(max(0, int(limit) - current))
    return left

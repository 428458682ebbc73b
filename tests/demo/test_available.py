"""Memory available to the demo."""

from __future__ import annotations

from pathlib import Path

import pytest

from vhost_balloon.demo.available import available_memory

MIB = 1 << 20


def test_the_kernels_estimate_counts_without_a_cgroup(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   2048 kB\n")
    assert available_memory(tmp_path) == 2 * MIB


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [("max", "max", 2 * MIB), ("1000000", "max", 900_000), ("max", "150000", 50_000)],
)
def test_the_tightest_cgroup_counts(tmp_path: Path, outer: str, inner: str, expected: int) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 2048 kB\n")
    (tmp_path / "proc/self/cgroup").write_text("1:name=x:/y\n0::/a/b\n")
    for name, limit in (("a", outer), ("a/b", inner)):
        folder = tmp_path / "sys/fs/cgroup" / name
        folder.mkdir(parents=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("100000\n")
    assert available_memory(tmp_path) == expected


def test_this_machine_has_memory() -> None:
    assert available_memory() > 0

"""What the kernel says of the host's memory, and what is made of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.helpers import GIB
from vhost_balloon.errors import OperatorError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.policy import host_text
from vhost_balloon.policy.host import HANDED_NAMES, HostInputs
from vhost_balloon.policy.interfaces import HostUnreadable
from vhost_balloon.policy.settings import PolicySettings

KIB = 1024
PLAIN = PolicySettings()
PARSERS: list[Callable[[bytes], object]] = [
    host_text.meminfo,
    host_text.stalled,
    host_text.arc_given_back,
    lambda data: host_text.stat_value(data, "file"),
    lambda data: host_text.amount(data, "memory.current"),
]


def meminfo(total: int, available: int) -> str:
    return (
        f"MemTotal:       {total // KIB:8} kB\nMemFree:        23593316 kB\n"
        f"MemAvailable:   {available // KIB:8} kB\nBuffers:           14444 kB\n"
    )


def pressure(total: int) -> str:
    return (
        f"some avg10=0.00 avg60=0.00 avg300=0.00 total={total}\n"
        f"full avg10=0.00 avg60=0.00 avg300=0.00 total=99999999\n"
    )


def arcstats(size: int, least: int) -> str:
    return (
        "13 1 0x01 147 39984 4545459 38466\nname                            type data\n"
        f"hits                            4    1\nc_min                           4    {least}\n"
        f"size                            4    {size}\ncompressed_size                 4    7\n"
    )


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A host of 64 GiB with 20 GiB available, under pressure since 1 s."""
    for name, text in (
        ("meminfo", meminfo(64 * GIB, 20 * GIB)),
        ("pressure/memory", pressure(1_000_000)),
        ("spl/kstat/zfs/arcstats", arcstats(12 * GIB, 2 * GIB)),
    ):
        path = tmp_path / "proc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "proc"


def cgroup(folder: Path, files: dict[str, str]) -> str:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return str(folder)


V2 = {
    "memory.max": f"{8 * GIB}\n",
    "memory.current": f"{6 * GIB}\n",
    "memory.stat": f"anon 5\nfile {4 * GIB}\nkernel 7\nshmem {3 * GIB}\n",
}
V1 = {
    "memory.limit_in_bytes": f"{8 * GIB}\n",
    "memory.usage_in_bytes": f"{6 * GIB}\n",
    "memory.stat": f"cache 1\nshmem 1\ntotal_cache {4 * GIB}\ntotal_shmem {3 * GIB}\n",
}


# Parsers


@given(st.binary(max_size=400))
@pytest.mark.parametrize("parse", PARSERS)
def test_any_bytes_are_read_or_refused(parse: Callable[[bytes], object], data: bytes) -> None:
    """With no other error than HostUnreadable."""
    with suppress(HostUnreadable):
        assert parse(data) is not data


@given(st.integers(1, 1 << 40), st.integers(0, 1 << 40), st.data())
def test_a_cut_meminfo_is_never_misread(total: int, available: int, data: st.DataObject) -> None:
    text = meminfo(total * KIB, available * KIB).encode()
    assert host_text.meminfo(text) == (total * KIB, min(total, available) * KIB)
    cut = text[: data.draw(st.integers(0, len(text)))]
    with suppress(HostUnreadable):
        assert host_text.meminfo(cut) == host_text.meminfo(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "MemTotal: 5 kB\n",
        "MemAvailable: 5 kB\n",
        "MemTotal: 5 kB\nMemAvailable: 5",
        "MemTotal: 5 kB\nMemAvailable: -5 kB\n",
        "MemTotal: 5 kB\nMemAvailable: 5 MB\n",
        "MemTotal: 0 kB\nMemAvailable: 0 kB\n",
        f"MemTotal: 5 kB\nMemAvailable: {'9' * 5000} kB\n",
        "XMemTotal: 5 kB\nXMemAvailable: 5 kB\n",
    ],
)
def test_nonsense_in_meminfo(text: str) -> None:
    with pytest.raises(HostUnreadable):
        host_text.meminfo(text.encode())


@given(st.integers(0, 10**19 - 1), st.data())
def test_a_cut_pressure_file_is_never_misread(total: int, data: st.DataObject) -> None:
    text = pressure(total).encode()
    assert host_text.stalled(text) == total
    cut = text[: data.draw(st.integers(0, len(text)))]
    assert host_text.stalled(cut) in (None, total)


@given(st.integers(0, 1 << 62), st.integers(0, 1 << 62))
@example(0, 5)
def test_only_what_is_above_the_minimum_of_the_arc_counts(size: int, least: int) -> None:
    given_back = host_text.arc_given_back(arcstats(size, least).encode())
    assert 0 <= given_back <= max(size - least, 0)
    assert given_back == pytest.approx(0.9 * max(size - least, 0), abs=1)
    assert host_text.arc_given_back(b"size 4 7\n") == 0


# The host


def test_the_host_is_read_anew_each_time(proc: Path) -> None:
    host = HostInputs.open(PLAIN, proc=proc)
    assert host.read(10.0).available == 20 * GIB
    (proc / "meminfo").write_text(meminfo(64 * GIB, 3 * GIB))
    figures = host.read(12.0)
    assert (figures.available, figures.total) == (3 * GIB, 64 * GIB)
    host.close()


def test_this_host() -> None:
    host = HostInputs.open(PLAIN)
    figures = host.read(1.0)
    host.close()
    assert 0 < figures.available <= figures.total
    assert figures.total == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_descriptors_that_are_handed_over(proc: Path, tmp_path: Path) -> None:
    """The paths are hidden; the descriptors stay the caller's, also over a second open()."""
    paths = (proc / "meminfo", proc / "pressure/memory", proc / "spl/kstat/zfs/arcstats")
    handed = {
        name: OwnedFd(os.open(path, os.O_RDONLY))
        for name, path in zip(HANDED_NAMES, paths, strict=True)
    }
    for _ in range(2):
        host = HostInputs.open(PolicySettings(zfs_arc=True), handed, proc=tmp_path / "hidden")
        assert host.read(0.0).available == 29 * GIB
        paths[1].write_text(pressure(2_000_000))
        assert host.read(2.0).some == 0.5
        host.close()
        paths[1].write_text(pressure(1_000_000))
    assert not any(fd.closed for fd in handed.values())


def test_the_arc_counts_only_if_the_operator_says_so(proc: Path) -> None:
    host = HostInputs.open(PolicySettings(zfs_arc=True), proc=proc)
    assert host.read(0.0).available == 29 * GIB
    (proc / "spl/kstat/zfs/arcstats").write_text("nonsense")
    assert host.read(0.0).available == 20 * GIB
    host.close()
    (proc / "spl/kstat/zfs/arcstats").unlink()
    host = HostInputs.open(PolicySettings(zfs_arc=True), proc=proc)
    assert host.read(0.0).available == 20 * GIB
    host.close()


def test_pressure_is_the_share_of_the_time_between_two_reads(proc: Path) -> None:
    host = HostInputs.open(PLAIN, proc=proc)

    def some(total: int | None, now: float) -> float:
        (proc / "pressure/memory").write_text("" if total is None else pressure(total))
        return host.read(now).some

    assert some(5_000_000, 100.0) == 0, "the first read"
    assert some(5_500_000, 102.0) == 0.25
    assert some(9_500_000, 104.0) == 1, "more than the time that passed"
    assert some(9_500_000, 106.0) == 0
    assert some(100, 108.0) == 0, "the counter fell"
    assert some(1_000_100, 110.0) == 0.5
    assert some(None, 112.0) == 0
    assert some(2_000_100, 114.0) == 0, "nothing to compare with"
    assert some(3_000_100, 114.0) == 0, "no time passed"
    assert some(4_000_100, 90.0) == 0, "the clock went back"
    host.close()


def test_a_kernel_without_pressure_figures(proc: Path) -> None:
    (proc / "pressure/memory").unlink()
    host = HostInputs.open(PLAIN, proc=proc)
    assert [host.read(now).some for now in (0.0, 2.0)] == [0, 0]
    host.close()
    (proc / "pressure/memory").mkdir()  # opens, but cannot be read, as with psi=0
    host = HostInputs.open(PLAIN, proc=proc)
    assert [host.read(now).some for now in (0.0, 2.0)] == [0, 0]
    host.close()


@pytest.mark.parametrize("text", [None, "", "MemTotal: 5 kB\n"])
def test_without_meminfo_the_operator_is_told_both_ways_out(proc: Path, text: str | None) -> None:
    if text is None:
        (proc / "meminfo").unlink()
    else:
        (proc / "meminfo").write_text(text)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OperatorError) as caught:
        HostInputs.open(PLAIN, proc=proc)
    assert "OpenFile=/proc/meminfo:meminfo:read-only" in str(caught.value)
    assert "ProcSubset=all" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(os.listdir("/proc/self/fd")) == before


def test_meminfo_that_becomes_nonsense(proc: Path) -> None:
    host = HostInputs.open(PLAIN, proc=proc)
    (proc / "meminfo").write_text("MemTotal: 1 kB\n")
    with pytest.raises(HostUnreadable, match="does not say MemAvailable"):
        host.read(0.0)
    host.close()


# A cgroup as the host


@pytest.mark.parametrize("files", [V1, V2], ids=["v1", "v2"])
def test_a_cgroup_limits_the_host(proc: Path, tmp_path: Path, files: dict[str, str]) -> None:
    settings = PolicySettings(cgroup=cgroup(tmp_path / "vms", files))
    host = HostInputs.open(settings, proc=proc)
    figures = host.read(0.0)
    assert (figures.available, figures.total) == (3 * GIB, 8 * GIB)
    (proc / "meminfo").write_text(meminfo(4 * GIB, GIB))
    figures = host.read(0.0)
    assert (figures.available, figures.total) == (GIB, 4 * GIB), "the host has less"
    host.close()


@pytest.mark.parametrize(
    "files",
    [{**V1, "memory.limit_in_bytes": "9223372036854771712\n"}, {**V2, "memory.max": "max\n"}],
    ids=["v1", "v2"],
)
def test_a_cgroup_without_a_limit(proc: Path, tmp_path: Path, files: dict[str, str]) -> None:
    settings = PolicySettings(cgroup=cgroup(tmp_path / "vms", files))
    host = HostInputs.open(settings, proc=proc)
    figures = host.read(0.0)
    assert (figures.available, figures.total) == (20 * GIB, 64 * GIB)
    host.close()


def test_a_cgroup_over_its_limit_and_with_more_shared_memory_than_file_pages(
    proc: Path, tmp_path: Path
) -> None:
    files = {**V2, "memory.max": "0\n", "memory.stat": "file 4096\nshmem 8192\n"}
    settings = PolicySettings(cgroup=cgroup(tmp_path / "vms", files))
    host = HostInputs.open(settings, proc=proc)
    figures = host.read(0.0)
    assert (figures.available, figures.total) == (0, 1)
    assert settings.reserve_of(figures.total) == 1
    host.close()


def test_the_pressure_of_the_cgroup_is_read_instead(proc: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vms"
    settings = PolicySettings(cgroup=cgroup(folder, {**V2, "memory.pressure": pressure(0)}))
    host = HostInputs.open(settings, proc=proc)
    assert host.read(0.0).some == 0
    (folder / "memory.pressure").write_text(pressure(500_000))
    assert host.read(2.0).some == 0.25
    (folder / "memory.pressure").unlink()
    assert host.read(4.0).some == 0, "the host's is another counter"
    (proc / "pressure/memory").write_text(pressure(2_000_000))
    assert host.read(6.0).some == 0.5
    host.close()


def test_a_cgroup_that_vanishes_and_comes_back(proc: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vms"
    host = HostInputs.open(PolicySettings(cgroup=cgroup(folder, V2)), proc=proc)
    folder.rename(tmp_path / "gone")
    with pytest.raises(HostUnreadable, match=r"cgroup's .*memory.max: No such file"):
        host.read(0.0)
    (tmp_path / "gone").rename(folder)
    assert host.read(2.0).available == 3 * GIB
    host.close()


@pytest.mark.parametrize("name", sorted(V1 | V2))
def test_a_file_of_a_cgroup_that_is_missing_or_nonsense(
    proc: Path, tmp_path: Path, name: str
) -> None:
    files = V1 if name in V1 and name != "memory.stat" else V2
    settings = PolicySettings(cgroup=cgroup(tmp_path / "vms", {**files, name: "many\n"}))
    with pytest.raises(OperatorError) as caught:
        HostInputs.open(settings, proc=proc)
    assert "OpenFile" not in str(caught.value), "no remedy for another mistake"
    (tmp_path / "vms" / name).unlink()
    with pytest.raises(OperatorError):
        HostInputs.open(settings, proc=proc)


@given(st.integers(0, 1 << 62), st.data())
def test_a_cut_file_of_a_cgroup_is_never_misread(value: int, data: st.DataObject) -> None:
    text = f"anon 1\nfile {value}\n".encode()
    cut = text[: data.draw(st.integers(0, len(text)))]
    with suppress(HostUnreadable):
        assert host_text.stat_value(cut, "file") == value
    assert host_text.stat_value(text, "file") == value
    text = f"{value}\n".encode()
    assert host_text.amount(text, "memory.max") == value
    with pytest.raises(HostUnreadable):
        host_text.amount(text[:-1], "memory.max")

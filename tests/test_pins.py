"""Pinned memory is not discarded: what /proc tells of the front end, and what follows from it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

from tests.end_to_end import (
    MIB,
    PAGE,
    ByHand,
    Host,
    LogLines,
    by_hand,
    eventually,
    fill,
    is_filled,
    refused,
    serving,
)
from tests.pinning import pinned
from tests.rig.fixtures import required
from vhost_balloon.pins import CACHE_SECONDS, PinGuard, PinState

PID = 4711
MEMORY = 64 * MIB


class Proc:
    """A /proc with one process in it."""

    def __init__(self, root: Path, pid: int = PID) -> None:
        self.root = root
        self.folder = root / str(pid)
        (self.folder / "fd").mkdir(parents=True)
        self.says()

    def says(self, *, pinned: int = 0, locked: int = 0) -> None:
        """Write its status; sizes in bytes."""
        (self.folder / "status").write_text(
            f"Name:\tqemu\nVmPeak:\t 9 kB\nVmLck:\t{locked // 1024:8} kB\n"
            f"VmPin:\t{pinned // 1024:8} kB\nThreads:\t3\n"
        )

    def holds(self, *links: str) -> None:
        for number, link in enumerate(links):
            (self.folder / "fd" / str(number)).symlink_to(link)

    def look(self, memory: int = MEMORY) -> PinState:
        return PinGuard(PID, self.root).check(memory, 0.0)


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path / "proc")


# What is seen


def test_a_process_with_nothing_pinned(proc: Proc) -> None:
    proc.holds("/dev/kvm", "/dev/vhost-net", "anon_inode:[eventfd]", "/dev/null", "socket:[5]")
    assert proc.look() is PinState.FREE


def test_a_single_pinned_page_is_enough(proc: Proc) -> None:
    proc.says(pinned=PAGE)
    assert proc.look() is PinState.PINNED


def test_locked_memory_counts_from_the_guests_size_on(proc: Proc) -> None:
    """QEMU may lock a little for itself."""
    proc.says(locked=MEMORY - PAGE)
    assert proc.look() is PinState.FREE
    proc.says(locked=MEMORY)
    assert proc.look() is PinState.PINNED


def test_before_the_guests_memory_is_known_locked_memory_says_nothing(proc: Proc) -> None:
    proc.says(locked=PAGE)
    assert proc.look(memory=0) is PinState.FREE


@pytest.mark.parametrize(
    "link",
    ["/dev/vfio/vfio", "/dev/vfio/12", "/dev/vfio/devices/vfio0", "anon_inode:[vfio-device]",
     "anon_inode:[vfio]", "/dev/iommu", "/dev/vhost-vdpa-0", "anon_inode:[iommufd]"],
)  # fmt: skip
def test_a_device_that_pins_is_seen_before_it_has(proc: Proc, link: str) -> None:
    proc.holds("/dev/null", link)
    assert proc.look() is PinState.PINNED


def test_unreadable_descriptors_leave_it_to_the_status(proc: Proc) -> None:
    (proc.folder / "fd").rmdir()
    assert proc.look() is PinState.FREE
    proc.says(pinned=PAGE)
    assert proc.look() is PinState.PINNED


@pytest.mark.parametrize(
    "status", [None, "", "VmPin:\t0 kB\n", "VmLck:\t0 kB\n", "VmPin:\tx kB\nVmLck:\t0 kB\n"]
)
def test_without_a_status_it_cannot_be_told(proc: Proc, status: str | None) -> None:
    (proc.folder / "status").unlink()
    if status is not None:
        (proc.folder / "status").write_text(status)
    assert proc.look() is PinState.UNKNOWN


def test_a_process_that_is_not_there_or_cannot_be_named(proc: Proc) -> None:
    assert PinGuard(PID + 1, proc.root).check(MEMORY, 0.0) is PinState.UNKNOWN
    assert PinGuard(None, proc.root).check(MEMORY, 0.0) is PinState.UNKNOWN


def test_a_look_is_kept_for_a_second_at_most(proc: Proc) -> None:
    guard = PinGuard(PID, proc.root)
    assert guard.check(MEMORY, 100.0) is PinState.FREE
    proc.says(pinned=PAGE)
    assert guard.check(MEMORY, 100.0 + CACHE_SECONDS - 0.01) is PinState.FREE
    assert guard.check(MEMORY, 100.0 + CACHE_SECONDS) is PinState.PINNED
    assert CACHE_SECONDS <= 1


# Real processes


def cannot_pin(reason: str) -> NoReturn:
    """Real pins are required in CI; elsewhere a kernel may forbid io_uring."""
    if required():
        pytest.fail(f"real pins are required here: {reason}")
    pytest.skip(f"REAL PINS NOT TESTED: {reason}")


@contextmanager
def process_that(what: str, size: int) -> Iterator[int]:
    """A process that pins or locks memory, by its id."""
    command = [sys.executable, "-m", "tests.pinning", what, str(size)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        said = process.stdout.readline().strip()
        if said != "done":
            process.stdin.close()
            cannot_pin(said)
        yield process.pid
        process.stdin.close()


def test_a_real_process_that_pins() -> None:
    with process_that("pin", 4 * PAGE) as pid:
        assert PinGuard(pid).check(MEMORY, 0.0) is PinState.PINNED


def test_a_real_process_that_locks_its_memory() -> None:
    with process_that("lock", MIB) as pid:
        assert PinGuard(pid).check(MIB, 0.0) is PinState.PINNED
        assert PinGuard(pid).check(2 * MIB, 0.0) is PinState.FREE


def test_this_process_pins_nothing() -> None:
    assert PinGuard(os.getpid()).check(MEMORY, 0.0) is PinState.FREE


# What follows: the daemon and a guest


def played(host: Host, monkeypatch: pytest.MonkeyPatch, root: Path) -> Proc:
    """Have the daemon look at a /proc of ours; the simulator's front end is this process."""
    monkeypatch.setattr(host.machine, "proc", root)
    return Proc(root, os.getpid())


async def offer(guest: ByHand) -> bool:
    """Report a block and inflate a page, both in use before; whether they were discarded."""
    block, page = guest.ram.regions[0].start + 32 * MIB, guest.ram.regions[0].end - PAGE
    for _ in range(2):
        fill(guest.ram, block, 4 * MIB)
        fill(guest.ram, page, PAGE)
        await guest.report((block, 4 * MIB))
        await guest.inflate([page // PAGE])
        kept = is_filled(guest.ram, block, 4 * MIB)
        if is_filled(guest.ram, page, PAGE) == kept:
            return not kept
        # The look grew old between the two; the next one counts for both of a second round.
    raise AssertionError("one of the two was discarded and the other was not")


OFFERED = 4 * MIB + PAGE


async def test_nothing_of_a_front_end_that_pins_is_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host:
        proc = played(host, monkeypatch, tmp_path / "proc")
        proc.says(pinned=PAGE)
        async with by_hand(host.path()) as guest:
            assert not await offer(guest)
            assert refused(host.vm()) == {"pinned": OFFERED}
            assert host.vm().counters.freed_bytes == 0
            statistics = host.vm().statistics()
            assert (statistics.reporting_paused, statistics.pause_reasons) == (True, ("pinned",))
    assert len(log_lines.having("warning", "vm1", "has memory pinned for a device")) == 1


async def test_a_status_that_cannot_be_read_is_no_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_lines: LogLines
) -> None:
    async with serving(tmp_path) as host:
        proc = played(host, monkeypatch, tmp_path / "proc")
        (proc.folder / "status").unlink()
        async with by_hand(host.path()) as guest:
            assert not await offer(guest)
            assert refused(host.vm()) == {"pins-unknown": OFFERED}
            assert host.vm().statistics().pause_reasons == ("pins-unknown",)
    assert log_lines.having("warning", "vm1", "--discard=always")


async def test_always_discards_without_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path, "--discard=always") as host:
        played(host, monkeypatch, tmp_path / "proc").says(pinned=PAGE)
        async with by_hand(host.path()) as guest:
            assert await offer(guest)
            assert refused(host.vm()) == {}
            assert host.vm().counters.freed_bytes == OFFERED
            assert not host.vm().statistics().reporting_paused


async def test_never_discards_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, "--discard=never") as host, by_hand(host.path()) as guest:
        assert not await offer(guest)
        assert refused(host.vm()) == {"discard-never": OFFERED}
        assert host.vm().counters.freed_bytes == 0
        assert host.vm().statistics().pause_reasons == ("discard-never",)


async def test_a_device_that_is_plugged_in_and_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at again before discards, a second after the last time."""
    async with serving(tmp_path) as host:
        proc = played(host, monkeypatch, tmp_path / "proc")
        async with by_hand(host.path()) as guest:
            assert await offer(guest)
            proc.says(pinned=PAGE)
            await look_again(guest, discarded=False)
            proc.says()
            await look_again(guest, discarded=True)


async def look_again(guest: ByHand, *, discarded: bool) -> None:
    """Offer until the last look has grown old."""
    while await offer(guest) != discarded:
        pass


async def test_real_pins_of_a_real_front_end(tmp_path: Path) -> None:
    """This process is the front end, and has io_uring pin a page for as long as it says."""
    async with serving(tmp_path) as host:
        with ExitStack() as stack:
            try:
                stack.enter_context(pinned(PAGE))
            except OSError as error:
                cannot_pin(str(error))
            async with by_hand(host.path()) as guest:
                assert not await offer(guest)
                assert refused(host.vm()) == {"pinned": OFFERED}
        await eventually(lambda: PinGuard(os.getpid()).check(MEMORY, 0.0) is PinState.FREE)
        await eventually(lambda: not host.vm().attached)
        async with by_hand(host.path()) as guest:
            assert await offer(guest)


def test_of_a_process_with_too_many_descriptors_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vhost_balloon.pins.MAX_DESCRIPTORS", 3)
    proc = Proc(tmp_path)
    proc.holds(*["/dev/null"] * 3)
    assert proc.look() is PinState.FREE
    (proc.folder / "fd" / "3").symlink_to("/dev/null")
    assert proc.look() is PinState.UNKNOWN

"""Guest memory files that shrink or grow while the daemon has them mapped."""

from __future__ import annotations

import fcntl
import os
import signal
from pathlib import Path

import pytest
from trio.testing import MockClock

from protocol.virtio_balloon import Queue
from tests.support.command import daemon
from tests.support.end_to_end import BLOCK, MIB, LogLines, by_hand, fill, serving
from tests.support.helpers import mapped, memfd
from vhost_balloon.simulator.memory import GuestRam

GIB = 1 << 30


async def test_a_truncated_ring_ends_the_daemon_of_its_own_vm_and_no_other(tmp_path: Path) -> None:
    mine, others = tmp_path / "mine.sock", tmp_path / "others.sock"
    with (
        daemon(f"--socket-path={mine}") as victim,
        daemon(f"--socket-path={others}") as other,
    ):
        ram = GuestRam.create(64 * MIB, sealed=False)
        async with by_hand(others) as healthy, by_hand(mine, ram) as guest:
            kick = guest.rings[Queue.REPORTING].kick_event
            assert kick is not None
            os.ftruncate(ram.regions[0].fd, 0)
            kick.signal()
            assert victim.process.wait(timeout=20) == -signal.SIGBUS
            assert victim.process.stderr is not None
            assert "Fatal Python error: Bus error" in victim.process.stderr.read()
            fill(healthy.ram, 8 * MIB, BLOCK)
            await healthy.report((8 * MIB, BLOCK))
            assert healthy.ram.resident_in(8 * MIB, BLOCK) == 0
        assert other.end()[0] == 0


async def test_memory_that_was_cut_before_it_came_is_left_alone(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines
) -> None:
    ram = GuestRam.create(64 * MIB)
    region = ram.add(16 * MIB, GIB, sealed=False)
    async with serving(tmp_path) as host, by_hand(host.path(), ram, features=None) as guest:
        os.ftruncate(region.fd, 4 * MIB)
        await guest.front_end.add_region(region)
        assert log_lines.having("vm1", "is left alone", f"of a file of {4 * MIB}")
        await guest.start()
        await guest.works(host.vm())


def test_a_seal_that_comes_after_the_size_was_looked_at_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The peer could have truncated the file between the two."""
    look, memory = os.fstat, memfd(MIB, seals=0)

    def fstat(fd: int) -> os.stat_result:
        result = look(fd)
        fcntl.fcntl(memory.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fstat)
        region = mapped(memory)
    assert not region.shrink_sealed
    region.close()


async def test_a_file_that_grows_is_served_as_far_as_it_was_told(
    tmp_path: Path, still_clock: MockClock
) -> None:
    ram = GuestRam.create(64 * MIB, sealed=False)
    async with serving(tmp_path) as host, by_hand(host.path(), ram) as guest:
        fd = ram.regions[0].fd
        os.ftruncate(fd, 128 * MIB)
        os.posix_fallocate(fd, 64 * MIB, BLOCK)
        spent = ram.resident()
        await guest.report((64 * MIB, BLOCK))
        assert ram.resident() == spent, "memory that was not announced is not the guest's"
        assert host.vm().counters.refused_bytes["outside-memory"] == BLOCK
        await guest.works(host.vm())
        added = ram.add(64 * MIB, GIB, sealed=False, fd=os.dup(fd))
        await guest.front_end.add_region(added)
        fill(ram, GIB + 32 * MIB, BLOCK)
        await guest.report((GIB + 32 * MIB, BLOCK))
        assert ram.resident_in(GIB + 32 * MIB, BLOCK) == 0


async def test_unsealed_memory_may_come_where_sealed_memory_is(
    tmp_path: Path, still_clock: MockClock, log_lines: LogLines
) -> None:
    """Each region is checked: a sealed one does not vouch for the others."""
    async with serving(tmp_path) as host, by_hand(host.path()) as guest:
        assert not log_lines.having("not sealed")
        added = guest.ram.add(16 * MIB, GIB, sealed=False)
        await guest.front_end.add_region(added)
        assert log_lines.having("warning: vm1", "not sealed")
        await guest.works(host.vm())

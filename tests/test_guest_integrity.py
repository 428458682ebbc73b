"""Real guests: no byte is lost, and one VM's end touches no other."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.guests import attached, corruption, wait_until
from tests.rig import workload
from tests.rig.daemon import Daemon
from tests.rig.guest import Guest
from tests.rig.memory import GiB, Memory, MiB
from tests.rig.qmp import QMPClient

pytestmark = pytest.mark.guest

SECONDS = 60


@pytest.mark.timeout(420)
def test_no_byte_is_lost_under_reporting_and_moving_targets() -> None:
    """For 60 s the guest writes, deletes and verifies files while the balloon moves."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    targets = random.Random(seed)
    with attached("--stats-interval=1") as both:
        run = workload.Integrity(both.guest, SECONDS)
        moves = 0

        def over() -> bool:
            nonlocal moves
            both.qmp.execute("balloon", {"value": targets.randrange(600, 1024) * MiB})
            moves += 1
            # Polls take their time, so a move has a second or more to get somewhere.
            return run.report().finished

        wait_until(over, SECONDS * 5)
        report = run.wait(60)
        vm = both.vm()
        print(
            f"{report.written} files written, {report.verified} verified, {report.deleted} "
            f"deleted, {report.bad_bytes} bad bytes; {moves} targets, "
            f"{vm['inflated-bytes'] / MiB:.0f} MiB inflated, {vm['reported-bytes'] / MiB:.0f} MiB "
            f"reported, {vm['freed-bytes'] / MiB:.0f} MiB freed"
        )
        assert report.bad_bytes == 0
        assert report.verified > 50
        assert vm["inflated-bytes"] > 100 * MiB
        assert vm["reported-bytes"] > 100 * MiB
        assert corruption(both.guest) == []


def test_killed_guest_leaves_nothing_and_touches_no_other() -> None:
    half = Memory(GiB // 2)
    with (
        Daemon(vms=("web1", "db1")) as daemon,
        daemon.qmp() as qmp,
        Guest(daemon.sockets["web1"], memory=half) as other,
    ):
        wait_until(lambda: query(qmp, "web1")["driver-ready"], 30)
        idle = len(daemon.fds())
        with Guest(daemon.sockets["db1"], memory=half) as guest:
            wait_until(lambda: query(qmp, "db1")["driver-ready"], 30)
            assert len(daemon.fds()) > idle
            mapped = memfd_mappings(daemon)
            qmp.execute("balloon", {"value": 256 * MiB, "id": "db1"})
            guest.kill()  # mid-inflate
            wait_until(lambda: len(daemon.fds()) == idle, 10)
            assert memfd_mappings(daemon) == mapped - 1
        assert not query(qmp, "db1")["attached"]
        workload.fill(other, 200 * MiB)
        workload.free(other)
        wait_until(lambda: other.resident() < 200 * MiB, 10)
        qmp.execute("balloon", {"value": 400 * MiB, "id": "web1"})
        wait_until(lambda: query(qmp, "web1")["actual"] == 400 * MiB, 20)
        # The dead one's socket serves the next front end.
        with Guest(daemon.sockets["db1"], memory=half):
            wait_until(lambda: query(qmp, "db1")["driver-ready"], 30)


def query(qmp: QMPClient, vm_id: str) -> dict[str, Any]:
    vms: list[dict[str, Any]] = qmp.execute("query-vms")
    return next(vm for vm in vms if vm["id"] == vm_id)


def memfd_mappings(daemon: Daemon) -> int:
    return sum("memfd:memory-backend-memfd" in line for line in daemon.mappings())

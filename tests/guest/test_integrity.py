"""Real guests: no byte is lost, and one VM's end touches no other."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.rig.daemon import Daemon
from tests.rig.guest import Guest
from tests.rig.inside import workload
from tests.rig.memory import GiB, Memory, MiB
from tests.rig.qmp import QMPClient
from tests.rig.waiting import wait_until
from tests.support.vms.guests import attached, corruption

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
        attached(memory=half) as other,
        Daemon(name="db1") as daemon,
        daemon.qmp() as qmp,
    ):
        idle, mapped = len(daemon.fds()), memfd_mappings(daemon)
        with Guest(daemon.socket, memory=half) as guest:
            wait_until(lambda: query(qmp)["driver-ready"], 30)
            assert len(daemon.fds()) > idle
            qmp.execute("balloon", {"value": 256 * MiB})
            guest.kill()  # mid-inflate
            wait_until(lambda: len(daemon.fds()) == idle, 10)
            assert memfd_mappings(daemon) == mapped
        assert not query(qmp)["attached"]
        workload.fill(other.guest, 200 * MiB)
        workload.free(other.guest)
        wait_until(lambda: other.guest.resident() < 200 * MiB, 10)
        other.qmp.execute("balloon", {"value": 400 * MiB})
        wait_until(lambda: other.vm()["actual"] == 400 * MiB, 20)
        # The dead one's socket serves the next front end.
        with Guest(daemon.socket, memory=half):
            wait_until(lambda: query(qmp)["driver-ready"], 30)


def query(qmp: QMPClient) -> dict[str, Any]:
    found: dict[str, Any] = qmp.execute("query-vms")[0]
    return found


def memfd_mappings(daemon: Daemon) -> int:
    return sum("memfd:memory-backend-memfd" in line for line in daemon.mappings())

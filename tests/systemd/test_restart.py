"""A running guest outlives its daemon's restarts, kills and crashes, and loses no byte.

Real QEMU under real systemd. VHOST_BALLOON_RESTARTS says how many moments of each kind (8), and
VHOST_BALLOON_SEED repeats a run.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.rig.inside import workload
from tests.rig.systemd import SERVICE, SystemdHost
from tests.support.restarting import under_systemd
from tests.support.restarting.under_systemd import Watched, death, keep_busy
from tests.support.vms.guests import corruption

pytestmark = pytest.mark.guest

MOMENTS = int(os.environ.get("VHOST_BALLOON_RESTARTS", "8"))
SEED = int(os.environ.get("VHOST_BALLOON_SEED", random.randrange(1 << 32)))
LATEST = 1.5
"""Seconds after which a random moment has come: a guest's reports are two seconds apart."""


@pytest.fixture(scope="module")
def served(systemd_host: SystemdHost) -> Iterator[Watched]:
    """One guest for all."""
    with under_systemd.dying(systemd_host), under_systemd.watched(systemd_host) as found:
        yield found


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    print(f"VHOST_BALLOON_SEED={SEED} VHOST_BALLOON_RESTARTS={MOMENTS}")
    return random.Random(f"{SEED} {request.node.name}")


@contextmanager
def integrity(served: Watched) -> Iterator[None]:
    """The guest writes, deletes and verifies files; no byte of them is lost, and at the end QEMU
    can still be stopped, continued and reset."""
    run = workload.Integrity(served.guest, 3600)
    first, logged = len(served.pauses), len(served.host.journal())
    yield
    report = run.finish(120)
    print(f"{report.written} files written, {report.verified} verified, {report.bad_bytes} bad")
    assert (report.bad_bytes, corruption(served.guest)) == (0, [])
    assert report.verified > 5
    log = served.host.journal()[logged:]
    assert [text for text in under_systemd.STRANGE if text in log] == []
    served.stop_and_cont()
    served.check()
    served.guest.reset()
    served.answers()
    served.check()
    pauses = served.pauses[first:]
    longest = max(pauses, default=(0.0, "none"))
    print(f"{len(pauses)} restarts survived; longest pause {longest[0]:.2f} s ({longest[1]})")


def finished(served: Watched, since: float, name: str) -> None:
    served.pauses.append((served.answers() - since, name))
    served.check()


def restart_in(host: SystemdHost, seconds: float) -> float:
    """Restart in so many seconds; when that was."""
    time.sleep(seconds)
    since = time.monotonic()
    host.systemctl("restart", SERVICE)
    return since


@pytest.mark.timeout(1200)
def test_systemctl_restart(served: Watched, chance: random.Random) -> None:
    with integrity(served), ThreadPoolExecutor(1) as worker:
        for number in range(MOMENTS):
            busy = under_systemd.BUSY[number % len(under_systemd.BUSY)]
            served.pause(chance.random() < 0.5)
            with death(served.host) as end:
                since = worker.submit(restart_in, served.host, chance.uniform(0, LATEST))
                keep_busy(served, busy, chance, end)
            finished(served, since.result(), f"restart while {busy.__name__}")
        assert "Traceback" not in served.host.journal()


@pytest.mark.timeout(1200)
def test_sigkill_at_random_moments(served: Watched, chance: random.Random) -> None:
    with integrity(served), ThreadPoolExecutor(1) as worker:
        for number in range(MOMENTS // 2):  # the others are at steps: test_systemd_crash
            busy = under_systemd.BUSY[number % len(under_systemd.BUSY)]
            served.pause(chance.random() < 0.5)
            with death(served.host) as end:
                moment = chance.uniform(0, LATEST)
                died = worker.submit(end.kill_in, moment)
                keep_busy(served, busy, chance, end)
            finished(served, died.result(), f"SIGKILL while {busy.__name__}")

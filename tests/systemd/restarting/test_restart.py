"""A running guest survives restarts and kills of its daemon, and loses no byte.

Real QEMU under real systemd. The environment variables are described in
tests.support.restarting.moments.
"""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.rig.systemd import SERVICE, SystemdHost
from tests.support.restarting import under_systemd
from tests.support.restarting.moments import MOMENTS, finished, integrity
from tests.support.restarting.under_systemd import Watched, death, keep_busy

pytestmark = pytest.mark.guest

LATEST = 1.5
"""Latest random moment in seconds; a guest's reports are two seconds apart."""


def restart_in(host: SystemdHost, seconds: float) -> float:
    """Restart the daemon after a delay; return the time of the restart."""
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
        for number in range(MOMENTS // 2):  # test_crash.py has the others
            busy = under_systemd.BUSY[number % len(under_systemd.BUSY)]
            served.pause(chance.random() < 0.5)
            with death(served.host) as end:
                moment = chance.uniform(0, LATEST)
                died = worker.submit(end.kill_in, moment)
                keep_busy(served, busy, chance, end)
            finished(served, died.result(), f"SIGKILL while {busy.__name__}")

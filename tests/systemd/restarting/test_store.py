"""What systemd stores for a VM: a few descriptors of our own, and nothing of its front end."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.rig import process
from tests.rig.devices.memory import hotplug_dimm
from tests.rig.systemd import SERVICE, SystemdHost
from tests.rig.waiting import wait_until
from tests.support.restarting import under_systemd
from tests.support.restarting.under_systemd import Watched

pytestmark = pytest.mark.guest

OURS = {
    "lock": 1,
    "pipe": 1,
    "record": 1,
    "shelf": 4,  # both ends of two pairs: one is filled from the other
    "connection": 1,
}
"""How many there are, by what their names begin with, behind a full stop."""


@pytest.fixture(scope="module")
def served(systemd_host: SystemdHost) -> Iterator[Watched]:
    with under_systemd.watched(systemd_host, slots=1) as found:
        yield found


def nothing(served: Watched) -> None:
    """It has only just connected."""


def hotplug(served: Watched) -> None:
    hotplug_dimm(served.guest)


def restart(served: Watched) -> None:
    served.host.systemctl("restart", SERVICE)


def kill(served: Watched) -> None:
    served.host.wait_replaced(served.host.kill(signal.SIGKILL))


def upgrade(served: Watched) -> None:
    host = served.host
    said = host.journal().count("front end resumed")
    host.kill(signal.SIGHUP)
    wait_until(lambda: host.journal().count("front end resumed") > said, 30)


def reboot(served: Watched) -> None:
    served.guest.reset()


def stop_and_cont_often(served: Watched) -> None:
    """Each time all rings get new descriptors."""
    for _ in range(20):
        served.stop_and_cont()


@pytest.mark.parametrize(
    "act", [nothing, stop_and_cont_often, hotplug, restart, kill, upgrade, reboot]
)
def test_nothing_of_a_front_end_is_stored(served: Watched, act: Callable[[Watched], None]) -> None:
    act(served)
    served.answers()
    kinds = Counter(re.sub("[^a-z].*", "", name[1:]) for name in served.host.stored())
    assert kinds == OURS
    files = process.fds(served.host.daemon_pid()).values()
    assert sum("memory-backend-memfd" in file for file in files) >= 1, "it has them all the same"

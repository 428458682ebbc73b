"""What the store holds of VMs that ended while the daemon was stopped, and how it is freed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crowd import Crowd
from tests.guests import wait_until
from tests.helpers import MIB
from tests.rig.systemd import SERVICE, WEB1, SystemdHost

USED = 256 * MIB


@pytest.fixture
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    yield systemd_host
    systemd_host.systemctl("stop", "vhost-balloon*.socket", "vhost-balloon*.service")


def shared_memory() -> int:
    """Bytes of all memory files of this machine."""
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Shmem:"))


@pytest.mark.parametrize("freed_by", [f"stop {WEB1.socket}", f"clean --what=fdstore {SERVICE}"])
def test_the_memory_of_a_vm_that_died_is_freed(host: SystemdHost, freed_by: str) -> None:
    host.systemctl("start", *WEB1.units)
    before = shared_memory()
    with Crowd(host) as crowd:
        crowd.call("attach", sockets={"web1": str(host.path(WEB1.path))}, ram=2 * USED)
        crowd.call("fill", size=USED)
        host.systemctl("stop", SERVICE)
    # Others work on this machine, too, so half of it has to do.
    assert shared_memory() > before + USED // 2, "the store holds on to it"
    host.systemctl(*freed_by.split())
    wait_until(lambda: shared_memory() < before + USED // 2, 30)

"""What the store holds of VMs that ended while the daemon was stopped, and how it is freed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crowd import Crowd
from tests.guests import wait_until
from tests.helpers import MIB
from tests.rig.systemd import SERVICE, SystemdHost

SOCKET = "/run/vhost-balloon/web1.sock"
USED = 256 * MIB


@pytest.fixture
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    yield systemd_host
    systemd_host.systemctl("stop", "vhost-balloon*.socket", "vhost-balloon*.service")


def shared_memory() -> int:
    """Bytes of all memory files of this machine."""
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Shmem:"))


def test_clean_frees_the_memory_of_a_vm_that_died(host: SystemdHost) -> None:
    host.systemctl("start", "vhost-balloon.socket", "vhost-balloon-vm@web1.socket", SERVICE)
    before = shared_memory()
    with Crowd(host) as crowd:
        crowd.call("attach", sockets={"web1": str(host.path(SOCKET))}, ram=2 * USED)
        crowd.call("fill", size=USED)
        host.systemctl("stop", SERVICE)
    # Others work on this machine, too, so half of it has to do.
    assert shared_memory() > before + USED // 2, "the store holds on to it"
    host.systemctl("clean", "--what=fdstore", SERVICE)
    wait_until(lambda: shared_memory() < before + USED // 2, 30)

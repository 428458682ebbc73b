"""A VM that ended while its daemon was stopped: what the store holds of it, and how it is freed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rig.systemd import WEB1, SystemdHost
from tests.rig.waiting import wait_until
from tests.support.helpers import MIB
from tests.support.vms.crowd import Crowd

USED = 256 * MIB


@pytest.fixture
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    yield systemd_host
    systemd_host.systemctl("stop", "vhost-balloon*.socket", "vhost-balloon*.service")


def shared_memory() -> int:
    """Bytes of all memory files of this machine."""
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Shmem:"))


@pytest.mark.parametrize("service_first", [True, False], ids=["service first", "at once"])
def test_stopping_socket_and_service_frees_the_memory_of_a_vm_that_died(
    host: SystemdHost, service_first: bool
) -> None:
    host.systemctl("start", WEB1.socket)
    before = shared_memory()
    with Crowd(host) as crowd:
        crowd.call("attach", sockets={WEB1.vm: str(host.path(WEB1.path))}, ram=2 * USED)
        crowd.call("fill", size=USED)
        if service_first:
            host.systemctl("stop", WEB1.service)
        else:
            host.systemctl("stop", *WEB1.units)
    if service_first:
        # Others work on this machine, too, so half of it has to do.
        assert shared_memory() > before + USED // 2, "the store holds on to it"
        host.systemctl("stop", WEB1.socket)
    wait_until(lambda: shared_memory() < before + USED // 2, 10)

"""Whatever is done to the daemon of one VM, the VM beside it notices nothing."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from tests.rig.systemd import WEB1, Instance, SystemdHost
from tests.support.vms.crowd import Crowd
from tests.support.vms.guests import wait_until

NEIGHBOUR = Instance("neighbour")
TIMES = 3
LONGEST = 0.5
"""Seconds that a request of the neighbour takes at most, on two processors that others use, too."""


@pytest.fixture
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    with systemd_host.options("--discard=always"):
        yield systemd_host
        systemd_host.systemctl("stop", "vhost-balloon*.socket", "vhost-balloon*.service")


def restart(host: SystemdHost) -> None:
    host.systemctl("restart", WEB1.service)


def kill(host: SystemdHost) -> None:
    host.systemctl("reset-failed", WEB1.service)
    host.wait_replaced(host.kill())


def upgrade(host: SystemdHost) -> None:
    """The process stays, so its log tells."""
    said, pid = host.journal().count("front end resumed"), host.kill(signal.SIGHUP)
    wait_until(lambda: host.journal().count("front end resumed") > said, 30)
    assert host.daemon_pid() == pid


def hang(host: SystemdHost) -> None:
    """Stopped for a while, and then killed."""
    host.kill(signal.SIGSTOP)
    host.run("sleep", "1")
    kill(host)


@pytest.mark.parametrize("act", [restart, kill, upgrade, hang])
def test_a_neighbour_notices_nothing(host: SystemdHost, act: Callable[[SystemdHost], None]) -> None:
    vms = (WEB1, NEIGHBOUR)
    host.systemctl("start", *(vm.socket for vm in vms))
    with Crowd(host) as crowd:
        crowd.attach({vm.vm: host.path(vm.path) for vm in vms})
        crowd.use()
        pid, log = host.daemon_pid(NEIGHBOUR.service), host.journal(NEIGHBOUR.service)
        crowd.begin_using(NEIGHBOUR.vm)
        for _ in range(TIMES):
            act(host)
            crowd.use([WEB1.vm])
        uses = crowd.end_using()
        print(f"{uses.times} uses, the longest took {uses.longest * 1000:.0f} ms")
        assert uses.times > 20
        assert uses.kept == 0
        assert uses.longest < LONGEST
        assert host.daemon_pid(NEIGHBOUR.service) == pid
        assert host.journal(NEIGHBOUR.service) == log

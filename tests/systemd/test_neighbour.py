"""A VM notices nothing of what is done to the daemon of another VM."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from tests.rig.systemd import WEB1, Instance, SystemdHost
from tests.rig.waiting import wait_until
from tests.support.vms.crowd import ENOUGH, Crowd

NEIGHBOUR = Instance("neighbour")
TIMES = 3


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
    """The process stays, so wait for its log."""
    said, pid = host.journal().count("front end resumed"), host.kill(signal.SIGHUP)
    wait_until(lambda: host.journal().count("front end resumed") > said, 30)
    assert host.daemon_pid() == pid


def hang(host: SystemdHost) -> None:
    """Stop it for a second, then kill it."""
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
        for _ in range(TIMES):
            crowd.begin_using(NEIGHBOUR.vm)
            act(host)
            uses = crowd.end_using()
            assert uses.times > ENOUGH
            assert uses.kept == 0
            crowd.use([WEB1.vm])
        assert host.daemon_pid(NEIGHBOUR.service) == pid
        assert host.journal(NEIGHBOUR.service) == log

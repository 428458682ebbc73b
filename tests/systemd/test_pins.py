"""Passed-through devices under the units: front ends of another user, examined by the examiner."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.rig.systemd import WEB1, Instance, SystemdHost
from tests.rig.waiting import wait_until
from tests.support.vms.crowd import Crowd

EXAMINER = "vhost-balloon-examiner.service"
EXAMINER_SOCKET = "vhost-balloon-examiner.socket"


@pytest.fixture
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    yield systemd_host
    systemd_host.systemctl("stop", "vhost-balloon*.socket", "vhost-balloon*.service")


@pytest.fixture
def crowd(host: SystemdHost) -> Iterator[Crowd]:
    """A front end of another user than the daemon's, not attached yet."""
    host.systemctl("start", WEB1.socket)
    with Crowd(host) as found:
        yield found


def attach(host: SystemdHost, crowd: Crowd, vm: Instance = WEB1) -> None:
    crowd.attach({vm.vm: host.path(vm.path)})


def reasons(host: SystemdHost, vm: Instance = WEB1) -> list[str]:
    with host.qmp(vm.control) as qmp:
        found: list[str] = qmp.execute("query-vms")[0]["pause-reasons"]
    return found


def test_without_a_device_all_is_discarded_as_shipped(host: SystemdHost, crowd: Crowd) -> None:
    attach(host, crowd)
    wait_until(lambda: reasons(host) == [], 10)
    crowd.use()
    print(host.systemctl("status", EXAMINER, WEB1.service))
    assert "nothing is discarded" not in host.journal()


def test_with_a_device_nothing_is(host: SystemdHost, crowd: Crowd) -> None:
    crowd.plug()
    attach(host, crowd)
    wait_until(lambda: reasons(host) == ["pinned"], 10)
    assert crowd.kept()

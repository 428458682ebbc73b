"""Thirty VMs, each on an instance as systemd runs it: all fit their limits, a kill loses none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.rig import process
from tests.rig.systemd import Instance, SystemdHost
from tests.rig.waiting import wait_until
from tests.support.end_to_end import PAGE
from tests.support.vms.crowd import Crowd

VMS = [Instance(f"sim{number}") for number in range(30)]
STORED = 10
"""Descriptors that an instance has in systemd's store, at most."""


@pytest.fixture
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    with systemd_host.options("--discard=always", "--stats-interval=0"):
        yield systemd_host
        systemd_host.systemctl("stop", "vhost-balloon*.socket", "vhost-balloon*.service")


def query(host: SystemdHost, vm: Instance) -> dict[str, Any]:
    with host.qmp(vm.control) as qmp:
        found: dict[str, Any] = qmp.execute("query-vms")[0]
    return found


def shown(host: SystemdHost, name: str, *units: str) -> list[str]:
    """A property of each unit."""
    return host.systemctl("show", "--value", f"--property={name}", *units).split()


def figures(host: SystemdHost) -> list[tuple[int, int]]:
    """Stored and open descriptors of each instance, which are within their limits."""
    units = [vm.service for vm in VMS]
    stored = [int(number) for number in shown(host, "NFileDescriptorStore", *units)]
    opened = [len(process.fds(host.daemon_pid(unit))) for unit in units]
    assert max(stored) <= STORED < min(map(int, shown(host, "FileDescriptorStoreMax", *units)))
    assert max(opened) < min(map(int, shown(host, "LimitNOFILE", *units)))
    return list(zip(stored, opened, strict=True))


@pytest.mark.timeout(280)
def test_thirty_vms_survive_a_kill_of_each(host: SystemdHost) -> None:
    host.systemctl("start", *(vm.socket for vm in VMS))
    with Crowd(host) as crowd:
        attaching = crowd.attach({vm.vm: host.path(vm.path) for vm in VMS})
        crowd.use()
        print(f"\n{len(VMS)} VMs attached within {attaching:.1f} s")
        before = figures(host)
        freed = [query(host, vm)["freed-bytes"] for vm in VMS]
        old = [host.kill(unit=vm.service) for vm in VMS]
        crowd.begin_to_ask()  # nobody is there to answer
        print(f"all served {crowd.result():.1f} s after SIGKILL")
        for vm, pid in zip(VMS, old, strict=True):
            host.wait_replaced(pid, vm.service)
        crowd.use()
        found = [query(host, vm) for vm in VMS]
        grown = [vm["freed-bytes"] - was for vm, was in zip(found, freed, strict=True)]
        assert grown == [2 * PAGE] * len(VMS)
        assert all(vm["attached"] and vm["driver-ready"] for vm in found)
        wait_until(lambda: figures(host) == before, 60)
        stored, opened = (sorted(column) for column in zip(*before, strict=True))
        print(f"descriptors: {stored[0]}..{stored[-1]} stored, {opened[0]}..{opened[-1]} open")
    every = "vhost-balloon@sim*.service"
    wait_until(lambda: host.journal(every).count("front end resumed") == len(VMS), 30)
    log = host.journal(every)
    assert "would not survive" not in log
    assert "waiting for the service manager" not in log, "ETOOMANYREFS"
    assert "Traceback" not in log

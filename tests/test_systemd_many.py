"""Many VMs on one host, each with a process of its own: all are killed, and none is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from tests.crowd import Crowd
from tests.guests import wait_until
from tests.rig.systemd import Instance, SystemdHost

VMS = [Instance(f"sim{number}") for number in range(12)]


@pytest.fixture
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    with systemd_host.options("--discard=always", "--stats-interval=0"):
        yield systemd_host
        systemd_host.systemctl("stop", "vhost-balloon*.socket", "vhost-balloon*.service")


def test_all_processes_are_killed_at_once(host: SystemdHost) -> None:
    host.systemctl("start", *(vm.socket for vm in VMS))
    with Crowd(host) as crowd:
        for vm in VMS:  # a service manager that starts all at once reads no messages meanwhile
            crowd.attach({vm.vm: host.path(vm.path)})
        crowd.use()
        pids = {vm: host.daemon_pid(vm.service) for vm in VMS}
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        crowd.begin_to_ask()  # nobody is there to answer
        print(f"\nall served {crowd.result():.1f} s after SIGKILL")
        crowd.use()
        assert all(host.daemon_pid(vm.service) != pid for vm, pid in pids.items())
    for vm in VMS:
        with host.qmp(vm.control) as qmp:
            (found,) = qmp.execute("query-vms")
        assert found["id"] == vm.vm
        wait_until(lambda vm=vm: "front end resumed" in host.journal(vm.service), 30)  # type: ignore[misc]

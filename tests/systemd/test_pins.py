"""Passed-through devices under the units: front ends of another user, which the examiner sees."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rig.systemd import EXAMINER, EXAMINER_SOCKET, VENV, WEB1, Instance, SystemdHost
from tests.rig.waiting import wait_until
from tests.support.vms.crowd import Crowd

CTL = f"{VENV}/bin/vhost-balloonctl"
DB1 = Instance("db1")


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


def vm_info(host: SystemdHost, vm: Instance = WEB1) -> dict[str, Any]:
    with host.qmp(vm.control) as qmp:
        found: dict[str, Any] = qmp.execute("query-vms")[0]
    return found


def wait_for(host: SystemdHost, *reasons: str, vm: Instance = WEB1, seconds: float = 20) -> None:
    """Wait until reports are kept for these reasons, or are discarded without any."""
    wait_until(lambda: vm_info(host, vm)["pause-reasons"] == [*reasons], seconds)


def test_without_a_device_all_is_discarded_as_shipped(host: SystemdHost, crowd: Crowd) -> None:
    attach(host, crowd)
    wait_for(host)
    crowd.use()
    assert "pause-hint" not in vm_info(host)
    assert "nothing is discarded" not in host.journal()
    assert host.run(CTL, "qemu-args", WEB1.vm, "--memory=1G").stdout.startswith("-m 1073741824b ")


def test_with_a_device_nothing_is(host: SystemdHost, crowd: Crowd) -> None:
    crowd.plug()
    attach(host, crowd)
    wait_for(host, "pinned")
    assert crowd.kept()
    assert vm_info(host)["freed-bytes"] == 0
    host.wait_logged("has memory pinned for a device")


def test_a_device_that_is_plugged_in_and_out_while_the_vm_runs(
    host: SystemdHost, crowd: Crowd
) -> None:
    attach(host, crowd)
    wait_for(host)
    for _ in range(2):
        crowd.plug()
        wait_for(host, "pinned")
        assert crowd.kept()
        crowd.unplug()
        wait_for(host)
        crowd.use()


def test_one_vms_device_is_not_anothers(host: SystemdHost, crowd: Crowd) -> None:
    host.systemctl("start", DB1.socket)
    attach(host, crowd)
    with Crowd(host) as other:
        other.plug()
        attach(host, other, DB1)
        wait_for(host, "pinned", vm=DB1)
        wait_for(host)
        crowd.use()
        assert other.kept()


def test_an_examiner_that_is_killed_is_back_before_anybody_notices(
    host: SystemdHost, crowd: Crowd
) -> None:
    attach(host, crowd)
    wait_for(host)
    for _ in range(3):
        host.wait_replaced(host.kill(signal.SIGKILL, EXAMINER), EXAMINER)
        time.sleep(1.1)  # so that the daemon asks again
        crowd.use()
    crowd.plug()
    host.kill(signal.SIGKILL, EXAMINER)
    wait_for(host, "pinned")
    assert crowd.kept()


def test_an_examiner_that_hangs_costs_discards_and_no_time(host: SystemdHost, crowd: Crowd) -> None:
    attach(host, crowd)
    wait_for(host)
    pid = host.kill(signal.SIGSTOP, EXAMINER)
    try:
        wait_for(host, "pins-unknown")
        assert crowd.kept()
        began = time.monotonic()
        for _ in range(20):
            assert crowd.kept()
        assert time.monotonic() - began < 2
        assert "has not answered yet" in vm_info(host)["pause-hint"]
        crowd.plug()
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_for(host, "pinned")
    assert crowd.kept()
    crowd.unplug()
    wait_for(host)
    crowd.use()
    assert host.show(WEB1.service, "NRestarts") == "0"


def test_without_an_examiner_the_operator_is_told_what_to_do(
    host: SystemdHost, crowd: Crowd
) -> None:
    with host.without(EXAMINER, EXAMINER_SOCKET):
        attach(host, crowd)
        wait_for(host, "pins-unknown")
        assert crowd.kept()
        line = host.wait_logged("nothing is discarded")
        hint = vm_info(host)["pause-hint"]
        assert f"nothing is discarded: {hint}" in line
        for remedy in ("run vhost-balloon-examiner", "--discard=always"):
            assert remedy in hint
        where = f"--control-socket={WEB1.control}"
        assert hint in host.run(CTL, "status", WEB1.vm, where).stdout
        assert "says why, and what to do" in host.run(CTL, "list").stdout
        assert f"{WEB1.vm}: {hint}" in host.run(CTL, "qemu-args", WEB1.vm).stdout
        quiet = f"{CTL} qemu-args {WEB1.vm} 2>/dev/null"
        assert hint not in host.run("sh", "-c", quiet).stdout
    host.systemctl("start", EXAMINER_SOCKET)
    wait_for(host)
    crowd.use()


def test_a_socket_that_is_made_anew_is_found(host: SystemdHost, crowd: Crowd) -> None:
    attach(host, crowd)
    wait_for(host)
    host.systemctl("stop", EXAMINER_SOCKET, EXAMINER)
    wait_for(host, "pins-unknown")
    host.systemctl("start", EXAMINER_SOCKET)
    wait_for(host)
    crowd.use()


def test_a_restart_of_the_daemon_keeps_what_is_known(host: SystemdHost, crowd: Crowd) -> None:
    attach(host, crowd)
    wait_for(host)
    host.systemctl("restart", WEB1.service)
    wait_for(host)
    crowd.use()
    crowd.plug()
    host.systemctl("restart", WEB1.service)
    wait_for(host, "pinned")
    assert crowd.kept()

"""Five hundred VMs on the daemon as systemd runs it: they fit its limits, and a kill loses none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.crowd import Crowd
from tests.end_to_end import PAGE
from tests.guests import wait_until
from tests.rig import process
from tests.rig.systemd import SERVICE, SystemdHost

VMS = 500
PER_VM = 21
CONFIG = "/etc/vhost-balloon.toml"


@pytest.fixture
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    options = ("--discard=always", f"--config={CONFIG}", "--stats-interval=0")
    with systemd_host.options(*options):
        yield systemd_host
        systemd_host.systemctl("stop", "vhost-balloon*.socket", "vhost-balloon*.service")


def configured(host: SystemdHost, count: int) -> dict[str, Path]:
    """Start the daemon with so many VMs; their sockets, as this side sees them."""
    paths = {f"sim{number}": f"/run/vhost-balloon/sim{number}.sock" for number in range(count)}
    tables = (f'[vm.{vm}]\nsocket-path = "{path}"\n' for vm, path in paths.items())
    host.write(CONFIG, "".join(tables))
    host.systemctl("start", SERVICE)
    return {vm: host.path(path) for vm, path in paths.items()}


def query(host: SystemdHost) -> dict[str, dict[str, Any]]:
    with host.qmp() as qmp:
        return {vm["id"]: vm for vm in qmp.execute("query-vms")}


def stored(host: SystemdHost) -> int:
    return int(host.show(SERVICE, "NFileDescriptorStore"))


@pytest.mark.timeout(280)
def test_five_hundred_vms_survive_a_kill(host: SystemdHost) -> None:
    paths = configured(host, VMS)
    with Crowd(host) as crowd:
        attaching = crowd.attach(paths)
        crowd.use()
        print(f"\n{VMS} VMs attached within {attaching:.1f} s")
        before = figures(host)
        old = host.kill()
        crowd.begin_to_ask()  # nobody is there to answer
        print(f"all served {crowd.result():.1f} s after SIGKILL")
        host.wait_replaced(old)
        freed = {vm_id: vm["freed-bytes"] for vm_id, vm in query(host).items()}
        crowd.use()
        found = query(host)
        assert [vm["freed-bytes"] - freed[vm_id] for vm_id, vm in found.items()] == [2 * PAGE] * VMS
        assert all(vm["attached"] and vm["driver-ready"] for vm in found.values())
        assert figures(host) == before
    wait_until(lambda: host.journal().count("front end resumed") == VMS, 30)
    log = host.journal()
    assert "would not survive" not in log
    assert "waiting for the service manager" not in log, "ETOOMANYREFS"
    assert "Traceback" not in log


def test_a_vm_beyond_the_limit_is_refused_and_no_other_is_touched(host: SystemdHost) -> None:
    host.drop_in(SERVICE, f"[Service]\nFileDescriptorStoreMax={4 * PER_VM}\n")
    try:
        paths = configured(host, 5)
        last = paths.pop("sim4")
        first = paths.pop("sim0")
        with Crowd(host) as crowd:
            crowd.attach({"sim0": first, **paths})
            held = stored(host)
            assert crowd.refused(last), "before it has said or sent anything"
            crowd.use()
            host.wait_replaced(host.kill())
            crowd.use()
            assert crowd.refused(last)
            attached = {vm_id for vm_id, vm in query(host).items() if vm["attached"]}
            assert (attached, stored(host)) == ({"sim0", *paths}, held)
        log = host.wait_logged("sim4: front end refused: no more descriptors can be had, or stored")
        assert "Traceback" not in log
    finally:
        host.drop_in(SERVICE, "")


def figures(host: SystemdHost) -> tuple[int, int]:
    """Stored and open descriptors, once the store holds what the VMs have, and nothing else."""
    found = stored(host), len(process.fds(host.daemon_pid()))
    limits = [int(host.show(SERVICE, name)) for name in ("FileDescriptorStoreMax", "LimitNOFILE")]
    print(f"descriptors: {found[0]} stored of {limits[0]}, {found[1]} open of {limits[1]}")
    assert PER_VM * VMS <= limits[0] < limits[1]
    return found

"""Guests on the daemon as systemd runs it: closed in, and as another user than its front ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.rig.guest import Guest
from tests.rig.memory import GiB, Memory, MiB
from tests.rig.systemd import EXAMINER, EXAMINER_SOCKET, OPTIONS, VENV, WEB1, Instance, SystemdHost
from tests.rig.waiting import wait_until
from tests.support.helpers import resident
from tests.support.vms.crowd import Crowd
from tests.support.vms.guests import memory_files

pytestmark = pytest.mark.guest


@pytest.fixture
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    yield systemd_host
    systemd_host.systemctl("stop", "vhost-balloon*.socket", "vhost-balloon*.service")


def test_a_guest_reports_inflates_and_gives_statistics(host: SystemdHost) -> None:
    """As shipped, without an option."""
    host.systemctl("start", WEB1.socket)
    # QEMU connects first: that is what starts the daemon.
    socket = host.path(WEB1.path)
    with Guest(socket, memory=Memory(GiB), forker=host.forker) as guest, host.qmp() as qmp:

        def vm() -> dict[str, Any]:
            found: dict[str, Any] = qmp.execute("query-vms")[0]
            return found

        wait_until(lambda: bool(vm()["driver-ready"]), 30)
        guest.run("dd if=/dev/zero of=/run/fill bs=1M count=300 && rm /run/fill")
        wait_until(lambda: vm()["freed-bytes"] >= 250 * MiB, 60)
        qmp.execute("balloon", {"value": 700 * MiB})
        wait_until(lambda: vm()["actual"] == 700 * MiB, 60)
        assert sum(map(resident, memory_files(guest))) < 600 * MiB
        assert qmp.execute("balloon-stats", {"id": "web1"})
    assert "Traceback" not in host.journal()


def test_the_word_for_one_vm_alone(host: SystemdHost) -> None:
    """Its own file of options, where nobody can look into its front end."""
    told, untold = Instance("told"), Instance("untold")
    without_examiner = host.without(EXAMINER, EXAMINER_SOCKET)
    with without_examiner, host.options("--stats-interval=0"), Crowd(host) as crowd:
        # With those of all VMs, which would be replaced.
        options = "--stats-interval=0 --discard=always"
        host.write(f"{OPTIONS}-{told.vm}", f'VHOST_BALLOON_OPTIONS="{options}"\n')
        host.systemctl("start", told.socket, untold.socket)
        crowd.attach({vm.vm: host.path(vm.path) for vm in (told, untold)})
        crowd.use([told.vm])
        assert "pins-unknown" not in asked(host, told)
        assert "paused: pins-unknown" in asked(host, untold)


def asked(host: SystemdHost, vm: Instance) -> str:
    """What an operator is shown."""
    ctl = f"{VENV}/bin/vhost-balloonctl"
    return host.run(ctl, "status", vm.vm, f"--control-socket={vm.control}").stdout

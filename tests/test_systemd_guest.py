"""A real guest on the daemon as systemd runs it: closed in, and without root."""

from __future__ import annotations

from typing import Any

import pytest

from tests.guests import memory_files, resident, wait_until
from tests.rig.guest import Guest
from tests.rig.memory import GiB, Memory, MiB
from tests.rig.systemd import SERVICE, SystemdHost

pytestmark = pytest.mark.guest


def test_a_guest_reports_inflates_and_gives_statistics(systemd_host: SystemdHost) -> None:
    host = systemd_host
    host.systemctl("start", "vhost-balloon.socket", "vhost-balloon-vm@web1.socket")
    socket = host.path("/run/vhost-balloon/web1.sock")
    # QEMU connects first: that is what starts the daemon.
    with Guest(socket, memory=Memory(GiB), forker=host.forker) as guest, host.qmp() as qmp:

        def vm() -> dict[str, Any]:
            found: dict[str, Any] = qmp.execute("query-vms")[0]
            return found

        wait_until(lambda: bool(vm()["driver-ready"]), 30)
        assert vm()["refused-bytes"].get("pins-unknown", 0) == 0, "it can look at QEMU's process"
        guest.run("dd if=/dev/zero of=/run/fill bs=1M count=300 && rm /run/fill")
        wait_until(lambda: vm()["freed-bytes"] >= 250 * MiB, 60)
        qmp.execute("balloon", {"value": 700 * MiB})
        wait_until(lambda: vm()["actual"] == 700 * MiB, 60)
        assert sum(map(resident, memory_files(guest))) < 600 * MiB
        assert qmp.execute("balloon-stats", {"id": "web1"})
    assert "Traceback" not in host.journal(SERVICE)
    host.systemctl("stop", "vhost-balloon*.socket", "vhost-balloon*.service")

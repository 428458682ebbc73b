"""An operator disconnects a real guest under systemd: it runs on, and the next QEMU is served."""

from __future__ import annotations

import pytest

from tests.rig.guest import Guest
from tests.rig.memory import GiB, Memory
from tests.rig.systemd import SERVICE, WEB1, SystemdHost
from tests.rig.waiting import wait_until
from tests.support.restarting.under_systemd import Watched, watched

pytestmark = pytest.mark.guest


@pytest.mark.parametrize("killed", [False, True], ids=["", "killed"])
def test_a_disconnected_guest_runs_on_and_the_next_is_served(
    systemd_host: SystemdHost, killed: bool
) -> None:
    """Also if the daemon is killed right after the order: nothing of the first comes back."""
    host = systemd_host
    with watched(host) as first:
        first.free()
        stored = host.stored()
        first.ask("vm-disconnect")
        if killed:
            old = host.kill()
            host.wait_replaced(old)
        wait_until(lambda: len(host.stored()) == len(stored) - 1, 10)
        assert not first.vm()["attached"]
        assert first.guest.run("echo alive").strip() == "alive"
        with Guest(host.path(WEB1.path), memory=Memory(GiB), forker=host.forker) as guest:
            second = Watched(host, guest)
            wait_until(lambda: bool(second.vm()["driver-ready"]), 30)
            second.check_discards()
            host.systemctl("restart", SERVICE)
            second.check_discards()
            second.stop_and_cont()
            assert first.guest.run("echo alive").strip() == "alive"
            assert second.vm()["front-end-pid"] != first.guest.pid
        assert "inert" not in host.journal()

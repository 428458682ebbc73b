"""A VM that ends while its daemon is away: the next start cleans up after it."""

from __future__ import annotations

import pytest

from tests.rig import process
from tests.rig.errors import RigError
from tests.rig.guest import Guest
from tests.rig.memory import GiB, Memory
from tests.rig.systemd import SERVICE, WEB1, SystemdHost
from tests.rig.waiting import wait_until
from tests.support.restarting.under_systemd import Watched

pytestmark = pytest.mark.guest


@pytest.mark.parametrize("how", ["poweroff", "SIGKILL"])
def test_a_vm_that_ends_while_the_daemon_is_away_is_cleaned_up(
    systemd_host: SystemdHost, how: str
) -> None:
    host = systemd_host
    host.systemctl("start", *WEB1.units)
    try:
        empty = sorted(host.stored())
        with Guest(host.path(WEB1.path), memory=Memory(GiB), forker=host.forker) as guest:
            watched = Watched(host, guest)
            wait_until(lambda: bool(watched.vm()["driver-ready"]), 30)
            watched.free()
            wait_until(lambda: sum(watched.vm()["requests"].values()) > 0, 30)
            assert len(host.stored()) == len(empty) + 1, "its connection"
            host.systemctl("stop", SERVICE)
            if how == "poweroff":
                # QEMU, on its way out, waits for replies that only the next daemon gives.
                guest.console.send("poweroff -f")
                wait_until(lambda: not _answers(guest), 30)
            else:
                guest.kill()
            host.systemctl("start", SERVICE)
            wait_until(lambda: not watched.vm()["attached"], 30)
            wait_until(lambda: sorted(host.stored()) == empty, 10)
            wait_until(lambda: not guest.running(), 30)
            files = process.fds(host.daemon_pid()).values()
            assert not [file for file in files if "memory-backend" in file]
        assert sum(watched.vm()["requests"].values()) > 0, "its counters stay"
        with Guest(host.path(WEB1.path), memory=Memory(GiB), forker=host.forker) as guest:
            after = Watched(host, guest)
            wait_until(lambda: bool(after.vm()["driver-ready"]), 30)
    finally:
        host.systemctl("stop", "vhost-balloon*.socket", "vhost-balloon*.service")


def _answers(guest: Guest) -> bool:
    """Whether QEMU is there, and does not wait for a reply of ours."""
    if not guest.running():
        return False
    try:
        guest.qmp.execute("query-status", timeout=1)
    except RigError:
        return False
    return True

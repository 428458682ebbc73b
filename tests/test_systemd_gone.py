"""VMs that end while the daemon is away: its next start cleans up after them."""

from __future__ import annotations

import pytest

from tests.guests import wait_until
from tests.restarts import SOCKET, Watched
from tests.rig.errors import RigError
from tests.rig.guest import Guest
from tests.rig.memory import GiB, Memory
from tests.rig.systemd import SERVICE, WEB1, SystemdHost

pytestmark = pytest.mark.guest


def kinds(host: SystemdHost) -> dict[str, int]:
    """How many descriptors of each kind the store has: records, reply pipe, others."""
    names = host.stored()
    records = sum(name.startswith(".v") for name in names)
    pipes = sum(name.startswith(".w") for name in names)
    return {"records": records, "pipes": pipes, "others": len(names) - records - pipes}


@pytest.mark.parametrize("how", ["poweroff", "SIGKILL"])
def test_a_vm_that_ends_while_the_daemon_is_away_is_cleaned_up(
    systemd_host: SystemdHost, how: str
) -> None:
    host = systemd_host
    host.systemctl("start", *WEB1.units)
    try:
        empty = kinds(host)
        with Guest(host.path(SOCKET), memory=Memory(GiB), forker=host.forker) as guest:
            watched = Watched(host, guest)
            wait_until(lambda: bool(watched.vm()["driver-ready"]), 30)
            watched.free()
            assert kinds(host)["others"] > empty["others"] + 10
            if how == "poweroff":
                # QEMU, on its way out, waits for replies that only the next daemon gives.
                host.systemctl("stop", SERVICE)
                guest.console.send("poweroff -f")
                wait_until(lambda: not _answers(guest), 30)
            else:
                host.systemctl("stop", SERVICE)
                guest.kill()
            host.systemctl("start", SERVICE)
            wait_until(lambda: not watched.vm()["attached"], 30)
            wait_until(lambda: kinds(host) == empty, 10)
            wait_until(lambda: not guest.running(), 30)
        assert sum(watched.vm()["requests"].values()) > 0, "its counters stay"
        with Guest(host.path(SOCKET), memory=Memory(GiB), forker=host.forker) as guest:
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

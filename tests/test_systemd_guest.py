"""Guests on the daemon as systemd runs it: closed in, and as another user than its front ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.crowd import Crowd
from tests.end_to_end import PAGE
from tests.guests import memory_files, resident, wait_until
from tests.rig.guest import Guest
from tests.rig.memory import GiB, Memory, MiB
from tests.rig.systemd import CONTROL, OPTIONS, SERVICE, VENV, WEB1, Instance, SystemdHost

pytestmark = pytest.mark.guest


@pytest.fixture
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    yield systemd_host
    systemd_host.systemctl("stop", "vhost-balloon*.socket", "vhost-balloon*.service")


def test_a_guest_reports_inflates_and_gives_statistics(host: SystemdHost) -> None:
    with host.options("--discard=always"):
        host.systemctl("start", WEB1.socket)
        # QEMU connects first: that is what starts the daemon.
        with (
            Guest(host.path(WEB1.path), memory=Memory(GiB), forker=host.forker) as guest,
            host.qmp() as qmp,
        ):

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
    assert "Traceback" not in host.journal(SERVICE)


def test_nothing_of_another_users_front_end_is_discarded(host: SystemdHost) -> None:
    """It may not look at their descriptors, so a device may be passed through to the guest."""
    ctl = f"{VENV}/bin/vhost-balloonctl"
    with Crowd(host) as crowd:
        host.systemctl("start", WEB1.socket)
        crowd.attach({"web1": host.path(WEB1.path)})
        asked = host.run(ctl, "status", "web1", f"--control-socket={CONTROL}")
        assert "paused: pins-unknown" in asked.stdout, "before it has given anything"
        assert crowd.kept()
        shown = host.run(ctl, "status", "web1", "--json", f"--control-socket={CONTROL}").stdout
    vm = json.loads(shown)
    assert vm["pause-reasons"] == ["pins-unknown"]
    assert (vm["freed-bytes"], vm["refused-bytes"]["pins-unknown"]) == (0, 2 * PAGE)
    (line,) = [
        line for line in host.journal(SERVICE).splitlines() if "nothing is discarded" in line
    ]
    assert "it runs as another user" in line
    assert "--discard=always" in line


def test_the_word_for_one_vm_alone(host: SystemdHost) -> None:
    """--discard=always among its own options, while others have those of all."""
    told, untold = Instance("told"), Instance("untold")
    options = f"{OPTIONS}-{told.vm}"
    host.write(options, "VHOST_BALLOON_OPTIONS=--discard=always\n")
    with host.options("--stats-interval=0"), Crowd(host) as crowd:
        host.systemctl("start", told.socket, untold.socket)
        crowd.attach({vm.vm: host.path(vm.path) for vm in (told, untold)})
        crowd.use([told.vm])
        reasons: dict[str, list[str]] = {}
        for vm in (told, untold):
            with host.qmp(vm.control) as qmp:
                reasons |= {
                    found["id"]: found["pause-reasons"] for found in qmp.execute("query-vms")
                }
    host.path(options).unlink()
    assert reasons == {"told": [], "untold": ["pins-unknown"]}

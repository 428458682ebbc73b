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
from tests.rig.systemd import CONTROL, SERVICE, VENV, SystemdHost

pytestmark = pytest.mark.guest


@pytest.fixture
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    yield systemd_host
    systemd_host.systemctl("stop", "vhost-balloon*.socket", "vhost-balloon*.service")


def test_a_guest_reports_inflates_and_gives_statistics(host: SystemdHost) -> None:
    with host.options("--discard=always"):
        host.systemctl("start", "vhost-balloon.socket", "vhost-balloon-vm@web1.socket")
        # QEMU connects first: that is what starts the daemon.
        socket = host.path("/run/vhost-balloon/web1.sock")
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
    assert "Traceback" not in host.journal(SERVICE)


@pytest.mark.parametrize(
    ("sockets", "service", "control"),
    [
        (["vhost-balloon.socket", "vhost-balloon-vm@web1.socket"], SERVICE, CONTROL),
        (
            ["vhost-balloon@web1.socket"],
            "vhost-balloon@web1.service",
            "/run/vhost-balloon/web1.control",
        ),
    ],
    ids=["shared", "own"],
)
def test_nothing_of_another_users_front_end_is_discarded(
    host: SystemdHost, sockets: list[str], service: str, control: str
) -> None:
    """It may not look at their descriptors, so a device may be passed through to the guest."""
    ctl = f"{VENV}/bin/vhost-balloonctl"
    with host.options("--metrics-address=127.0.0.1:0"), Crowd(host) as crowd:
        host.systemctl("start", *sockets, service)
        crowd.attach({"web1": host.path("/run/vhost-balloon/web1.sock")})
        asked = host.run(ctl, "status", "web1", f"--control-socket={control}")
        assert "paused: pins-unknown" in asked.stdout, "before it has given anything"
        assert reporting(host, service) == {"pins-unknown"}
        assert crowd.kept()
        shown = host.run(ctl, "status", "web1", "--json", f"--control-socket={control}").stdout
    vm = json.loads(shown)
    assert vm["pause-reasons"] == ["pins-unknown"]
    assert (vm["freed-bytes"], vm["refused-bytes"]["pins-unknown"]) == (0, 2 * PAGE)
    (line,) = [
        line for line in host.journal(service).splitlines() if "nothing is discarded" in line
    ]
    assert "it runs as another user" in line
    assert "--discard=always" in line


def reporting(host: SystemdHost, service: str) -> set[str]:
    """Why reports are not discarded, by the metrics."""
    url = host.journal(service).rpartition("metrics on ")[2].split()[0]
    ask = f"import urllib.request as u; print(u.urlopen('{url}', timeout=20).read().decode())"
    lines = host.run("python3", "-c", ask).stdout.splitlines()
    name = "vhost_balloon_reporting_pause_reason{"
    return {
        line.split('reason="')[1].split('"')[0]
        for line in lines
        if line.startswith(name) and line.endswith((" 1", " 1.0"))
    }


def test_the_word_for_one_vm_alone(host: SystemdHost) -> None:
    """discard = "always" in its table of the file."""
    config, paths = "/etc/vhost-balloon.toml", {}
    text = ""
    for vm, more in (("told", 'discard = "always"\n'), ("untold", "")):
        path = f"/run/vhost-balloon/{vm}.sock"
        text += f'[vm.{vm}]\nsocket-path = "{path}"\n{more}'
        paths[vm] = host.path(path)
    host.write(config, text)
    with host.options(f"--config={config}", "--stats-interval=0"), Crowd(host) as crowd:
        host.systemctl("start", SERVICE)
        crowd.attach(paths)
        crowd.use(["told"])
        with host.qmp() as qmp:
            reasons = {vm["id"]: vm["pause-reasons"] for vm in qmp.execute("query-vms")}
    assert reasons == {"told": [], "untold": ["pins-unknown"]}

"""The daemon as a service of a real systemd: its start, its sockets, its watchdog, its end."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guests import wait_until
from tests.helpers import receive
from tests.rig.systemd import CONTROL, SERVICE, SystemdHost

README = Path(__file__).parents[1] / "README.md"
GET_FEATURES = bytes([1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
"""vhost-user: the request, version 1, no payload."""
SHARED = ("vhost-balloon.socket", "vhost-balloon-vm@web1.socket")


@pytest.fixture
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    """Nothing of the daemon runs before, and nothing after."""
    yield systemd_host
    every = ("vhost-balloon*.socket", "vhost-balloon*.service")
    systemd_host.systemctl("stop", *every)
    systemd_host.systemctl("reset-failed")


def vms(host: SystemdHost, control: str = CONTROL) -> dict[str, str]:
    """The daemon's VMs and their sockets."""
    with host.qmp(control) as qmp:
        return {vm["id"]: vm["socket-path"] for vm in qmp.execute("query-vms")}


def answered(sock: socket.socket) -> bool:
    """Whether a front end gets its reply."""
    sock.settimeout(30)
    return receive(sock, 4) == GET_FEATURES[:4]


def connected(host: SystemdHost, path: str) -> socket.socket:
    """A front end that has asked its first question."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(host.path(path)))
    sock.sendall(GET_FEATURES)
    return sock


def test_it_starts_tells_its_status_and_stops(host: SystemdHost) -> None:
    host.systemctl("start", *SHARED, SERVICE)
    assert host.show(SERVICE, "ActiveState") == "active"
    assert 'Status: "serving 1 VM, 0 attached"' in host.systemctl("status", SERVICE)
    assert vms(host) == {"web1": "/run/vhost-balloon/web1.sock"}
    host.systemctl("stop", *SHARED, SERVICE)
    assert (host.show(SERVICE, "Result"), host.show(SERVICE, "ExecMainStatus")) == ("success", "0")
    assert "Traceback" not in host.journal()


def readme_commands() -> list[str]:
    """What README's section has an administrator type, from the installed units on."""
    section = README.read_text().partition("\n## systemd\n")[2].partition("\n## ")[0]
    return re.findall(r"^    (system\S+ .*)$", section, re.MULTILINE)


def test_the_commands_in_readme_do_what_it_says(host: SystemdHost) -> None:
    *commands, own, clean = readme_commands()
    assert ("enable --now vhost-balloon@" in own, "clean --what=fdstore" in clean) == (True, True)
    for command in commands:
        host.run(*command.split())
    assert sorted(vms(host)) == ["db", "web1"]
    host.run(*own.split())
    with connected(host, "/run/vhost-balloon/web2.sock") as front_end:
        assert answered(front_end)
        assert list(vms(host, "/run/vhost-balloon/web2.control")) == ["web2"]
    host.systemctl("stop", SERVICE)
    host.run(*clean.split())
    enabled = re.findall(r"vhost-balloon\S*\.(?:socket|service)", " ".join([*commands, own]))
    host.systemctl("disable", "--now", *dict.fromkeys(enabled))


def test_it_runs_without_root_or_any_privilege(host: SystemdHost) -> None:
    host.systemctl("start", *SHARED, SERVICE)
    status = host.path(f"/proc/{host.show(SERVICE, 'MainPID')}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert "0" not in fields["Uid"].split()
    assert {int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


def test_a_connection_starts_it_and_is_served(host: SystemdHost) -> None:
    host.systemctl("start", *SHARED)
    assert host.show(SERVICE, "ActiveState") == "inactive"
    with connected(host, "/run/vhost-balloon/web1.sock") as front_end:
        assert answered(front_end)
        assert list(vms(host)) == ["web1"]


def test_a_vm_with_a_daemon_of_its_own(host: SystemdHost) -> None:
    host.systemctl("start", "vhost-balloon@db.socket")
    with connected(host, "/run/vhost-balloon/db.sock") as front_end:
        assert answered(front_end)
        assert list(vms(host, "/run/vhost-balloon/db.control")) == ["db"]
    assert host.show("vhost-balloon@db.service", "ActiveState") == "active"
    assert host.show(SERVICE, "ActiveState") == "inactive"


def test_a_vm_is_added_while_the_daemon_is_stopped(host: SystemdHost) -> None:
    host.systemctl("start", *SHARED, SERVICE)
    added = "vhost-balloon-vm@web2.socket"
    assert "failed" in host.systemctl("start", added, check=False), (
        "systemd does not, while it runs"
    )
    host.systemctl("stop", SERVICE)
    host.systemctl("start", added)
    host.systemctl("start", SERVICE)
    assert sorted(vms(host)) == ["web1", "web2"]


def test_options_and_metrics_on_loopback(host: SystemdHost) -> None:
    with host.options("--no-reporting", "--metrics-address=127.0.0.1:0"):
        host.systemctl("start", *SHARED, SERVICE)
        log = host.wait_logged("/metrics\n")
    url = log.rpartition("metrics on ")[2].split()[0]
    ask = f"import urllib.request as u; print(u.urlopen('{url}', timeout=20).read().decode())"
    assert 'vhost_balloon_connected{vm="web1"} 0' in host.run("python3", "-c", ask).stdout


def test_an_operators_mistake_is_one_line_and_tried_again_ever_later(host: SystemdHost) -> None:
    host.drop_in(SERVICE, "[Service]\nEnvironment=VHOST_BALLOON_OPTIONS=--nonsense\n")
    try:
        host.systemctl("start", SERVICE, check=False)
        wait_until(lambda: int(host.show(SERVICE, "NRestarts")) >= 3, 60)
        host.wait_logged("vhost-balloon: unrecognized arguments: --nonsense\n")
        host.wait_logged("Main process exited, code=exited, status=2")
        assert host.show(SERVICE, "RestartUSecNext") != host.show(SERVICE, "RestartUSec")
        host.systemctl("reset-failed", SERVICE)
        assert int(host.show(SERVICE, "NRestarts")) < 3
    finally:
        host.systemctl("stop", SERVICE)
        host.drop_in(SERVICE, "")
    host.systemctl("start", *SHARED, SERVICE)
    assert host.show(SERVICE, "ActiveState") == "active"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_it_is_replaced_after_a_signal(host: SystemdHost, number: signal.Signals) -> None:
    host.systemctl("start", *SHARED, SERVICE)
    host.wait_replaced(host.kill(number))
    assert list(vms(host)) == ["web1"]


def test_the_watchdog_replaces_a_stopped_daemon(host: SystemdHost) -> None:
    host.drop_in(SERVICE, "[Service]\nWatchdogSec=2s\n")
    try:
        host.systemctl("start", *SHARED, SERVICE)
        host.wait_replaced(host.kill(signal.SIGSTOP))
        host.wait_logged("Watchdog timeout (limit 2s)!")
        host.wait_logged("Current thread")  # where it hung
        assert list(vms(host)) == ["web1"]
    finally:
        host.drop_in(SERVICE, "")


def test_the_watchdog_is_fed(host: SystemdHost) -> None:
    host.drop_in(SERVICE, "[Service]\nWatchdogSec=1s\n")
    try:
        host.systemctl("start", *SHARED, SERVICE)
        pid = host.daemon_pid()
        stamps = []
        for _ in range(3):
            host.run("sleep", "1")
            stamps.append(int(host.show(SERVICE, "WatchdogTimestampMonotonic")))
        assert (len(set(stamps)), host.daemon_pid()) == (3, pid)
    finally:
        host.drop_in(SERVICE, "")


@pytest.fixture
def storing(host: SystemdHost) -> Iterator[SystemdHost]:
    """In the daemon's place: what stores one descriptor more at each start."""
    host.write(
        "/run/store.py",
        "import os, socket, signal; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "s.connect(os.environ['NOTIFY_SOCKET']); f = os.memfd_create('guest')\n"
        "socket.send_fds(s, [b'FDSTORE=1\\nFDNAME=.1\\nFDPOLL=0\\nREADY=1'], [f]); signal.pause()",
    )
    host.drop_in(SERVICE, "[Service]\nExecStart=\nExecStart=/usr/bin/python3 /run/store.py\n")
    yield host
    host.systemctl("stop", *SHARED, SERVICE)
    host.systemctl("disable", "vhost-balloon.service")
    host.drop_in(SERVICE, "")


def stored(host: SystemdHost) -> int:
    return int(host.show(SERVICE, "NFileDescriptorStore"))


def test_the_store_is_freed_on_request_while_the_daemon_is_stopped(storing: SystemdHost) -> None:
    storing.systemctl("enable", SERVICE)
    storing.systemctl("start", SERVICE)
    busy = storing.systemctl("clean", "--what=fdstore", SERVICE, check=False)
    assert ("not inactive" in busy, stored(storing)) == (True, 1)
    assert storing.stored() == [".1"]
    storing.systemctl("stop", SERVICE)
    assert stored(storing) == 1
    storing.systemctl("clean", "--what=fdstore", SERVICE)
    assert stored(storing) == 0


def test_what_keeps_the_store_while_the_daemon_is_stopped(storing: SystemdHost) -> None:
    """A unit that is neither enabled nor another's is unloaded when it stops, and its store too."""
    storing.systemctl("start", SERVICE)
    storing.systemctl("restart", SERVICE)
    assert stored(storing) == 2
    storing.systemctl("stop", SERVICE)
    assert stored(storing) == 0
    storing.systemctl("start", "vhost-balloon.socket", SERVICE)
    storing.systemctl("stop", SERVICE)
    storing.systemctl("daemon-reload")
    assert stored(storing) == 1
    storing.systemctl("start", SERVICE)
    storing.systemctl("daemon-reexec")
    assert stored(storing) == 2

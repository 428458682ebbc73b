"""The daemon as a service of a real systemd: its status, its watchdog, its end, its store."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.rig.systemd import SERVICE, WEB1, SystemdHost
from tests.rig.waiting import wait_until


@pytest.fixture
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    """No VM is served before, and none after."""
    yield systemd_host
    systemd_host.systemctl("stop", "vhost-balloon*.socket", "vhost-balloon*.service")
    systemd_host.systemctl("reset-failed")


def serves(host: SystemdHost) -> bool:
    """Whether the daemon answers for its VM."""
    with host.qmp() as qmp:
        return [vm["id"] for vm in qmp.execute("query-vms")] == [WEB1.vm]


def test_it_starts_tells_its_status_and_stops(host: SystemdHost) -> None:
    host.systemctl("start", *WEB1.units)
    assert host.show(SERVICE, "ActiveState") == "active"
    assert 'Status: "' in host.systemctl("status", SERVICE)
    assert serves(host)
    host.systemctl("stop", *WEB1.units)
    assert (host.show(SERVICE, "Result"), host.show(SERVICE, "ExecMainStatus")) == ("success", "0")
    assert "Traceback" not in host.journal()


def test_it_runs_without_root_or_any_privilege(host: SystemdHost) -> None:
    host.systemctl("start", *WEB1.units)
    status = host.path(f"/proc/{host.show(SERVICE, 'MainPID')}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert "0" not in fields["Uid"].split()
    assert {int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


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
    host.systemctl("start", *WEB1.units)
    assert host.show(SERVICE, "ActiveState") == "active"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_it_is_replaced_after_a_signal(host: SystemdHost, number: signal.Signals) -> None:
    host.systemctl("start", *WEB1.units)
    host.wait_replaced(host.kill(number))
    assert serves(host)


def test_the_watchdog_replaces_a_stopped_daemon(host: SystemdHost) -> None:
    host.drop_in(SERVICE, "[Service]\nWatchdogSec=2s\n")
    try:
        host.systemctl("start", *WEB1.units)
        host.wait_replaced(host.kill(signal.SIGSTOP))
        host.wait_logged("Watchdog timeout (limit 2s)!")
        host.wait_logged("Current thread")  # where it hung
        assert serves(host)
    finally:
        host.drop_in(SERVICE, "")


def test_the_watchdog_is_fed(host: SystemdHost) -> None:
    host.drop_in(SERVICE, "[Service]\nWatchdogSec=1s\n")
    try:
        host.systemctl("start", *WEB1.units)
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
    program = (
        "import os, socket, signal; s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); "
        "s.connect(os.environ['NOTIFY_SOCKET']); f = os.memfd_create('guest'); "
        "socket.send_fds(s, [b'FDSTORE=1\\nFDNAME=.1\\nFDPOLL=0\\nREADY=1'], [f]); signal.pause()"
    )
    host.write("/opt/store.py", program)
    host.drop_in(SERVICE, "[Service]\nExecStart=\nExecStart=/usr/bin/python3 /opt/store.py\n")
    yield host
    host.systemctl("stop", *WEB1.units)
    host.drop_in(SERVICE, "")


def stored(host: SystemdHost) -> int:
    return int(host.show(SERVICE, "NFileDescriptorStore"))


def test_the_store_is_kept_while_the_socket_is_there(storing: SystemdHost) -> None:
    storing.systemctl("start", *WEB1.units)
    storing.systemctl("restart", SERVICE)
    assert stored(storing) == 2
    storing.systemctl("stop", SERVICE)
    storing.systemctl("daemon-reload")
    assert stored(storing) == 2
    assert storing.stored() == [".1", ".1"]
    storing.systemctl("start", SERVICE)
    storing.systemctl("daemon-reexec")
    assert stored(storing) == 3
    storing.systemctl("stop", *WEB1.units)
    assert stored(storing) == 0
    storing.systemctl("start", *WEB1.units)
    assert stored(storing) == 1, "only its own"


def test_the_store_is_freed_on_request_while_the_service_is_stopped(storing: SystemdHost) -> None:
    storing.systemctl("start", *WEB1.units)
    busy = storing.systemctl("clean", "--what=fdstore", SERVICE, check=False)
    assert ("not inactive" in busy, stored(storing)) == (True, 1)
    storing.systemctl("stop", SERVICE)
    storing.systemctl("clean", "--what=fdstore", SERVICE)
    assert stored(storing) == 0

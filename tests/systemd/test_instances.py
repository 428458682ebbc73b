"""A VM is an instance of the units: how it starts, what a restart keeps, and what a stop ends."""

from __future__ import annotations

import re
import shlex
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from tests.rig.systemd import EXAMINER, EXAMINER_SOCKET, HUB, WEB1, Instance, SystemdHost
from tests.rig.waiting import wait_until
from tests.support.helpers import receive
from tests.support.paths import ROOT
from tests.support.vms.crowd import Crowd

DB: Final = Instance("db")
README: Final = ROOT / "systemd" / "README.md"
GET_FEATURES: Final = bytes([1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
"""vhost-user: the request, version 1, no payload."""

LOOKED_AT: Final = f"""
import json, socket
front_end, control = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
front_end.connect("{WEB1.path}")
front_end.sendall({GET_FEATURES!r})
front_end.recv(20, socket.MSG_WAITALL)
control.connect("{WEB1.control}")
lines = control.makefile("rw")
for command in ("qmp_capabilities", "query-vms"):
    lines.readline()
    lines.write(json.dumps({{"execute": command}}) + "\\n")
    lines.flush()
print(json.loads(lines.readline())["return"][0]["pause-reasons"])
"""


@pytest.fixture
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    """No VM is served before, and none after."""
    with systemd_host.options("--discard=always"):
        yield systemd_host
        systemd_host.systemctl("stop", "vhost-balloon*.socket", "vhost-balloon*.service")
        systemd_host.systemctl("reset-failed")


def connected(host: SystemdHost, vm: Instance = WEB1) -> socket.socket:
    """A front end that has connected."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(str(host.path(vm.path)))
    return sock


def ask(front_end: socket.socket) -> None:
    """Ask what answered() waits for."""
    front_end.sendall(GET_FEATURES)


def answered(front_end: socket.socket) -> bool:
    return receive(front_end, 20)[:4] == GET_FEATURES[:4]


def metrics(host: SystemdHost, port: int = 9750) -> str:
    url = f"http://127.0.0.1:{port}/metrics"
    ask = f"import urllib.request as u; print(u.urlopen('{url}', timeout=20).read().decode())"
    return host.run("python3", "-c", ask).stdout


@contextmanager
def added(host: SystemdHost, vm: Instance, text: str) -> Iterator[None]:
    """A drop-in of an instance's service."""
    host.drop_in(vm.service, text)
    try:
        yield
    finally:
        host.drop_in(vm.service, "")


def is_active(host: SystemdHost, unit: str) -> bool:
    return host.show(unit, "ActiveState") == "active"


def status(host: SystemdHost, unit: str) -> dict[str, str]:
    """/proc/PID/status of its process."""
    text = host.path(f"/proc/{host.show(unit, 'MainPID')}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


# Start


def test_a_front_end_starts_what_it_waits_for(host: SystemdHost) -> None:
    """Only the socket is enabled."""
    host.systemctl("enable", "--now", WEB1.socket)
    try:
        assert not is_active(host, WEB1.service)
        assert not host.path(WEB1.control).exists()
        with connected(host) as front_end:
            ask(front_end)
            assert answered(front_end)
        assert is_active(host, WEB1.service)
        with host.qmp() as qmp:
            assert [vm["id"] for vm in qmp.execute("query-vms")] == ["web1"]
    finally:
        host.systemctl("disable", "--now", WEB1.socket)
    assert not is_active(host, WEB1.service), "it goes with its socket"


def test_the_control_socket_is_there_while_the_service_is(host: SystemdHost) -> None:
    host.systemctl("start", WEB1.socket, WEB1.service)
    for _ in range(2):
        assert host.path(WEB1.control).is_socket()
        host.systemctl("restart", WEB1.service)
    host.wait_replaced(host.kill())
    with host.qmp() as qmp:
        assert qmp.execute("query-vms")
    host.systemctl("stop", WEB1.service)
    wait_until(lambda: not host.path(WEB1.control).exists(), 10)
    assert host.path(WEB1.path).is_socket()


def test_instances_have_nothing_in_common(host: SystemdHost) -> None:
    vms = (WEB1, DB)
    host.systemctl("start", *(unit for vm in vms for unit in vm.units))
    found = [status(host, vm.service) for vm in vms]
    assert len({uid for each in found for uid in each["Uid"].split()}) == 2
    for each in found:
        assert "0" not in each["Uid"].split()
        assert each["Groups"].split() == each["Gid"].split()[:1], "in no group but its own"
    assert len({host.show(vm.service, "ControlGroup") for vm in vms}) == 2
    folder = host.path("/run/vhost-balloon").stat()
    assert (folder.st_uid, folder.st_mode & 0o7777) == (0, 0o755)
    for vm in vms:
        for path, group in ((vm.path, "vhost-balloon"), (vm.control, "vhost-balloon-control")):
            info = host.path(path).stat()
            gid = int(host.run("getent", "group", group).stdout.split(":")[2])
            assert (info.st_uid, info.st_gid, info.st_mode & 0o7777) == (0, gid, 0o660)


def test_the_commands_in_readme_do_what_it_says(host: SystemdHost) -> None:
    section = README.read_text().partition("\n## VMs\n")[2].partition("\n##")[0]
    commands = re.findall(r"^    (system\S+ .*)$", section, re.MULTILINE)
    enabled = dict.fromkeys(re.findall(r"enable --now (.*)", "\n".join(commands)))
    try:
        for command in commands:
            host.run(*shlex.split(command))
        with connected(host), connected(host, DB) as front_end:
            ask(front_end)
            assert answered(front_end)
            wait_until(lambda: metrics(host).count("vhost_balloon_up{") == 2, 10)
        assert not host.path("/run/vhost-balloon/web2.sock").exists()
    finally:
        host.systemctl("disable", "--now", *" ".join(enabled).split())


def test_metrics_of_a_daemons_own_take_the_drop_in_of_readme(host: SystemdHost) -> None:
    dropped = README.read_text().partition("needs this drop-in:\n\n")[2].partition("\n\n")[0]
    host.write("/etc/default/vhost-balloon", "VHOST_BALLOON_OPTIONS=--metrics-address=:9751\n")
    with added(host, WEB1, re.sub("^ +", "", dropped, flags=re.MULTILINE) + "\n"):
        host.systemctl("start", *WEB1.units)
        host.wait_logged("/metrics\n")
        assert 'vhost_balloon_connected{vm="web1"} 0' in metrics(host, 9751)


def test_a_daemon_that_runs_as_qemus_user_may_look_at_it(host: SystemdHost) -> None:
    """So that it can tell without the examiner whether a device is passed through."""
    host.write("/etc/default/vhost-balloon", "")  # without --discard=always
    host.write("/opt/front_end.py", LOOKED_AT)
    host.run("chmod", "0644", "/opt/front_end.py")
    without_examiner = host.without(EXAMINER, EXAMINER_SOCKET)
    with without_examiner, added(host, WEB1, "[Service]\nUser=games\n"):
        host.systemctl("start", WEB1.socket)
        for user, expected in (("games", "[]"), ("news", "['pins-unknown']")):
            groups = "--groups=vhost-balloon,vhost-balloon-control"
            as_user = ("setpriv", f"--reuid={user}", f"--regid={user}", groups)
            assert host.run(*as_user, "python3", "/opt/front_end.py").stdout.strip() == expected
        host.systemctl("stop", *WEB1.units)


# A name is the instance, literally


@pytest.mark.parametrize("name", ["a", "Web_1-b", "x" * 28])
def test_names_that_a_vm_can_have(host: SystemdHost, name: str) -> None:
    vm = Instance(name)
    host.systemctl("start", vm.socket)
    with connected(host, vm) as front_end:
        ask(front_end)
        assert answered(front_end)
    with host.qmp(vm.control) as qmp:
        assert [found["id"] for found in qmp.execute("query-vms")] == [name]


@pytest.mark.parametrize("name", ["web1.example", "x" * 29])
def test_another_name_fails_and_a_drop_in_mends_it(host: SystemdHost, name: str) -> None:
    """No user can have such a name; a front end waits as for any start that fails."""
    vm = Instance(name)
    host.systemctl("start", vm.socket)
    with connected(host, vm) as front_end:
        ask(front_end)
        wait_until(lambda: host.show(vm.service, "Result") == "resources", 30)
        with added(host, vm, "[Service]\nUser=vb-other\n"):
            assert answered(front_end)
            assert "0" not in status(host, vm.service)["Uid"].split()
            host.systemctl("stop", *vm.units)


# What keeps a VM


def restart_service(host: SystemdHost) -> None:
    host.systemctl("restart", WEB1.service)


def restart_socket(host: SystemdHost) -> None:
    host.systemctl("restart", WEB1.socket)
    host.systemctl("start", WEB1.service)


def stop_and_start(host: SystemdHost) -> None:
    host.systemctl("stop", WEB1.service)
    host.systemctl("start", WEB1.service)


def kill(host: SystemdHost) -> None:
    host.wait_replaced(host.kill(signal.SIGKILL))


def reload_manager(host: SystemdHost) -> None:
    host.systemctl("daemon-reload")
    host.systemctl("daemon-reexec")
    host.systemctl("restart", WEB1.service)


@pytest.mark.parametrize(
    "again", [restart_service, restart_socket, stop_and_start, kill, reload_manager]
)
def test_a_vm_stays_attached(host: SystemdHost, again: Callable[[SystemdHost], None]) -> None:
    host.systemctl("start", WEB1.socket, DB.socket)
    with Crowd(host) as crowd:
        crowd.attach({vm.vm: host.path(vm.path) for vm in (WEB1, DB)})
        other = host.show(DB.service, "MainPID")
        for _ in range(2):
            again(host)
            crowd.use()
        assert host.show(DB.service, "MainPID") == other
    assert "Traceback" not in host.journal()


def test_the_next_front_end_is_served_by_the_process_that_runs(host: SystemdHost) -> None:
    host.systemctl("start", WEB1.socket)
    pids = set()
    for _ in range(3):
        with Crowd(host) as crowd:
            crowd.attach({"web1": host.path(WEB1.path)})
            crowd.use()
            pids.add(host.daemon_pid())
    assert len(pids) == 1


def test_a_failed_start_is_retried_and_who_waits_is_served(host: SystemdHost) -> None:
    options = "/etc/default/vhost-balloon-web1"
    host.write(options, "VHOST_BALLOON_OPTIONS=--nonsense\n")
    try:
        host.systemctl("start", WEB1.socket)
        with connected(host) as front_end:
            ask(front_end)
            # More often than the limits that systemd has by default for services.
            wait_until(lambda: int(host.show(WEB1.service, "NRestarts")) >= 6, 60)
            host.wait_logged("vhost-balloon: unrecognized arguments: --nonsense\n")
            host.path(options).write_text("")
            assert answered(front_end), "by itself"
        assert is_active(host, WEB1.socket)
    finally:
        host.path(options).unlink()


# What ends it


def test_stopping_the_service_alone_keeps_the_connection(host: SystemdHost) -> None:
    host.systemctl("start", WEB1.socket)
    with connected(host) as front_end:
        ask(front_end)
        assert answered(front_end)
        host.systemctl("stop", WEB1.service)
        ask(front_end)
        host.systemctl("start", WEB1.service)
        assert answered(front_end)


@pytest.mark.parametrize("hangs", [False, True], ids=["in order", "killed"])
def test_stopping_socket_and_service_ends_it_at_once(host: SystemdHost, hangs: bool) -> None:
    """Also where the stop failed, because the process had to be killed."""
    short = "[Service]\nTimeoutStopSec=1s\nTimeoutAbortSec=1s\n"
    with added(host, WEB1, short):
        host.systemctl("start", WEB1.socket)
        with connected(host) as front_end:
            ask(front_end)
            assert answered(front_end)
            if hangs:
                host.kill(signal.SIGSTOP)
            host.systemctl("stop", *WEB1.units, check=False)
            front_end.settimeout(1)
            assert front_end.recv(1) == b"", "nobody holds the connection any more"
        assert not any(host.path(path).exists() for path in (WEB1.path, WEB1.control))


# The hub


def test_the_hub_shows_what_runs_and_starts_nothing(host: SystemdHost) -> None:
    host.systemctl("start", HUB, WEB1.socket, *DB.units)
    assert 'vhost_balloon_up{vm="db"} 1' in metrics(host)
    assert 'vm="web1"' not in metrics(host)
    assert not is_active(host, WEB1.service)
    host.systemctl("start", WEB1.service)  # comes later than the hub
    assert 'vhost_balloon_up{vm="web1"} 1' in metrics(host)
    host.systemctl("stop", WEB1.service)
    wait_until(lambda: 'vm="web1"' not in metrics(host), 10)
    assert not is_active(host, WEB1.service)


def test_the_hub_runs_without_privileges_and_in_the_one_group(host: SystemdHost) -> None:
    host.systemctl("start", HUB)
    found = status(host, HUB)
    assert "0" not in found["Uid"].split()
    gid = host.run("getent", "group", "vhost-balloon-control").stdout.split(":")[2]
    assert gid in found["Groups"].split()
    assert {int(found[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0}
    assert (found["NoNewPrivs"], found["Seccomp"]) == ("1", "2")

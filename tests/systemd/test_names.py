"""Names and sockets under systemd: units of the operator's own, escaped instances, mistakes."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator

import pytest

from tests.rig.systemd import VENV, WEB1, Instance, SystemdHost
from tests.rig.waiting import wait_until
from tests.support.helpers import receive

GET_FEATURES = bytes([1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0])
"""vhost-user: the request, version 1, no payload."""

OWN = "balloon.service"


@pytest.fixture
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    """Without units of the operator's own, before and after."""
    systemd_host.run("mkdir", "-p", "/run/vms/web.example.com")
    yield systemd_host
    units = ("balloon.socket", OWN, "vhost-balloon*.socket", "vhost-balloon*.service")
    systemd_host.systemctl("stop", *units, check=False)
    systemd_host.run("sh", "-c", "rm -rf /run/vms /run/systemd/system/balloon.*")
    systemd_host.systemctl("daemon-reload")
    systemd_host.systemctl("reset-failed")


def own_units(host: SystemdHost, sockets: str, options: str = "") -> None:
    """A socket and a service unit as an operator may write them."""
    host.write("/run/systemd/system/balloon.socket", f"[Socket]\n{sockets}\n")
    service = f"[Service]\nType=notify\nExecStart={VENV}/bin/vhost-balloon {options}\n"
    host.write(f"/run/systemd/system/{OWN}", service)
    host.systemctl("daemon-reload")
    host.systemctl("start", "balloon.socket")


def ask(host: SystemdHost, path: str) -> socket.socket:
    """A front end that waits for an answer."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(str(host.path(path)))
    sock.sendall(GET_FEATURES)
    return sock


def answered(front_end: socket.socket) -> bool:
    return receive(front_end, 20)[:4] == GET_FEATURES[:4]


def mistakes(host: SystemdHost, unit: str) -> list[str]:
    """The lines with which its daemons ended."""
    return re.findall(r": vhost-balloon: (.*)", host.journal(unit))


def restarts(host: SystemdHost) -> int:
    return int(host.show(WEB1.service, "NRestarts"))


SOCKET = "/run/vms/web.example.com/balloon.sock"
CONTROL = "/run/vms/web.example.com/balloon.control"
TWO = f"ListenStream={SOCKET}\nListenStream={CONTROL}"


@pytest.mark.parametrize(
    ("sockets", "options", "name"),
    [
        (TWO, f"--control-socket={CONTROL}", "balloon"),
        (TWO, f"--socket-path={SOCKET} --name=web.example.com", "web.example.com"),
        (f"{TWO}\nFileDescriptorName=web.example.com", f"--control-socket={CONTROL}",
         "web.example.com"),
        (f"{TWO}\nFileDescriptorName=a b\\c", f"--control-socket={CONTROL}", "a b\\c"),
    ],
)  # fmt: skip
def test_one_socket_unit_for_front_end_and_control(
    host: SystemdHost, sockets: str, options: str, name: str
) -> None:
    own_units(host, sockets, options)
    with ask(host, SOCKET) as front_end:
        assert answered(front_end)
        with host.qmp(CONTROL) as qmp:
            (vm,) = qmp.execute("query-vms")
            assert (vm["id"], vm["socket-path"], vm["attached"]) == (name, SOCKET, True)


@pytest.mark.parametrize(
    ("sockets", "said"),
    [
        (TWO, "several front-end sockets were handed over, "),
        (f"ListenStream={SOCKET}\nAccept=yes", "a connection: set Accept=no in its unit"),
        (f"ListenDatagram={SOCKET}", "not a listening Unix stream socket: use ListenStream="),
        (f"ListenFIFO={SOCKET}", "'balloon.socket' handed over: Socket operation on non-socket"),
        ("ListenStream=127.0.0.1:9760", "FileDescriptorName=metrics may have a network address"),
        ("ListenStream=@balloon", "has no path: give ListenStream= the path of a file"),
    ],
)
def test_sockets_that_cannot_be_served_are_one_line(
    host: SystemdHost, sockets: str, said: str
) -> None:
    unit = OWN
    before = mistakes(host, unit)
    own_units(host, sockets)
    if "Accept=yes" in sockets:
        host.path(f"/run/systemd/system/{OWN}").rename(
            host.path("/run/systemd/system/balloon@.service")
        )
        host.systemctl("stop", "balloon.socket", check=False)
        host.systemctl("daemon-reload")
        host.systemctl("start", "balloon.socket")
        ask(host, SOCKET).close()
        unit, before = "balloon@*.service", []
    else:
        host.systemctl("start", OWN, check=False)
    wait_until(lambda: mistakes(host, unit) != before, 30)
    (line,) = mistakes(host, unit)[len(before) :]
    assert said in line


def test_a_mistake_in_a_units_sockets_is_retried_slowly_and_can_be_mended(
    host: SystemdHost,
) -> None:
    drop_in = f"[Socket]\nListenStream={WEB1.path}.more\n"
    host.drop_in(WEB1.socket, drop_in)
    try:
        host.systemctl("start", WEB1.socket)
        with ask(host, WEB1.path) as front_end:
            wait_until(lambda: restarts(host) >= 9, 60)
            began, before = time.monotonic(), restarts(host)
            wait_until(lambda: restarts(host) >= before + 2, 60)
            assert time.monotonic() - began > 4
            lines = set(mistakes(host, WEB1.service))
            assert len(lines) == 1
            assert "start one vhost-balloon for each (under systemd vhost-b" in lines.pop()
            assert host.show(WEB1.socket, "ActiveState") == "active"
            front_end.close()
    finally:
        host.drop_in(WEB1.socket, "")
    host.systemctl("restart", WEB1.socket)
    with ask(host, WEB1.path) as front_end:
        assert answered(front_end)


def test_an_escaped_instance_is_taken_literally(host: SystemdHost) -> None:
    """Its user name is not valid, so it takes a drop-in as every other such name."""
    vm = Instance("web\\x2d1")
    host.systemctl("start", vm.socket)
    with ask(host, vm.path):
        wait_until(lambda: host.show(vm.service, "Result") == "resources", 30)
    # Before the socket: systemd 257 loses a socket with such a path at a reload.
    host.systemctl("stop", *vm.units, check=False)
    host.drop_in(vm.service, "[Service]\nUser=vb-other\n")
    try:
        host.systemctl("start", vm.socket)
        with ask(host, vm.path) as front_end:
            assert answered(front_end)
            with host.qmp(vm.control) as qmp:
                assert [found["id"] for found in qmp.execute("query-vms")] == [vm.vm]
            host.wait_logged("name 'web\\x2d1' looks like the output of systemd-escape", vm.service)
            host.systemctl("stop", *vm.units)
    finally:
        host.drop_in(vm.service, "")

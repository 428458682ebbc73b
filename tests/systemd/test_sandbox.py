"""What one VM's process can do to another's from inside its unit: nothing.

Each attempt is made in three places: in the unit, where it has to fail; as the unit's user without
its sandbox, because the user alone has to do as well; and where it has to succeed, so that it is
known to be an attempt at all: at processes as the attacked one's own user, which is what a shared
user would allow, at all else as root.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.rig.systemd import HUB, VENV, Instance, SystemdHost
from tests.support.hostile.sandbox_probe import DONE, TOLD
from tests.support.paths import ROOT
from tests.support.vms.crowd import ENOUGH, Crowd

HOSTILE: Final = Instance("hostile")
VICTIM: Final = Instance("victim")
ABSTRACT: Final = "@vhost-balloon-test"
BUS: Final = "/run/dbus/system_bus_socket"
SHM: Final = "/dev/shm"
PROBE: Final = (
    f"[Service]\nExecStart=\nExecStart=/usr/bin/python3 {TOLD}\nWatchdogSec=0\nRestart=no\n"
)


@dataclass
class Place:
    """Both VMs, the attacked one served by the real daemon with a guest attached."""

    host: SystemdHost
    crowd: Crowd
    ids: tuple[str, str]

    def inside(self, *attempt: str, instance: Instance = HOSTILE) -> str:
        """The result of an attempt in an instance's unit."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(str(self.host.path(instance.control)))
            sock.sendall(json.dumps(attempt).encode() + b"\n")
            return sock.recv(100).decode()

    def without_sandbox(self, *attempt: str, ids: tuple[str, str] | None = None) -> str:
        """ids: a user and a group, instead of those of an instance's unit."""
        uid, gid = ids or self.ids
        user = ("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups")
        return self.host.run(*user, "python3", TOLD, *attempt).stdout.strip()

    def as_root(self, *attempt: str) -> str:
        return self.host.run("python3", TOLD, *attempt).stdout.strip()

    def tried_at(self, unit: str, attempt: str, *arguments: str) -> tuple[str, str, str]:
        """At a unit's process."""
        whole = (attempt, self.host.show(unit, "MainPID"), *arguments)
        shared = self.without_sandbox(*whole, ids=ids(self.host, unit))
        return self.inside(*whole), self.without_sandbox(*whole), shared

    def tried(self, *attempt: str) -> tuple[str, str, str]:
        return self.inside(*attempt), self.without_sandbox(*attempt), self.as_root(*attempt)


@pytest.fixture(scope="module")
def place(systemd_host: SystemdHost) -> Iterator[Place]:
    host = systemd_host
    host.write(TOLD, (ROOT / "tests/support/hostile/sandbox_probe.py").read_text())
    host.drop_in(HOSTILE.service, PROBE)
    with host.options("--discard=always"), Crowd(host) as crowd:
        host.systemctl("start", HOSTILE.socket, HOSTILE.service, VICTIM.socket, HUB)
        crowd.attach({"victim": host.path(VICTIM.path)})
        yield Place(host, crowd, ids(host, HOSTILE.service))
        crowd.use()
        assert host.show(VICTIM.service, "NRestarts") == "0"
        assert "Traceback" not in host.journal(VICTIM.service)
    host.systemctl("stop", *HOSTILE.units, *VICTIM.units, HUB)
    host.drop_in(HOSTILE.service, "")


def listening_abstractly() -> socket.socket:
    """Abstract names are of a network namespace."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0" + ABSTRACT[1:])
    listener.listen()
    return listener


def ids(host: SystemdHost, unit: str) -> tuple[str, str]:
    """User and group of a unit's process."""
    status = host.path(f"/proc/{host.show(unit, 'MainPID')}/status").read_text()
    uid, gid = re.findall(r"^[UG]id:\t(\d+)", status, re.MULTILINE)
    return uid, gid


@pytest.mark.parametrize("target", [VICTIM.service, HUB])
@pytest.mark.parametrize(
    ("attempt", "inside", "by_user"),
    [
        ("kill", "EPERM", "EPERM"),
        ("pidfd", "EPERM", "EPERM"),
        ("ptrace", "EPERM", "EPERM"),
        ("prlimit", "EPERM", "EPERM"),
        ("memory", "ENOENT", "EACCES"),
        ("command_line", "ENOENT", DONE),  # everybody's, where /proc shows the process
    ],
)
def test_a_neighbours_process(
    place: Place, target: str, attempt: str, inside: str, by_user: str
) -> None:
    assert place.tried_at(target, attempt) == (inside, by_user, DONE)


def test_a_neighbours_memory_by_address(place: Place) -> None:
    pid = place.host.show(VICTIM.service, "MainPID")
    address = place.host.path(f"/proc/{pid}/maps").read_text().partition("-")[0]
    assert place.tried_at(VICTIM.service, "peek", address) == ("EPERM", "EPERM", DONE)


def test_a_neighbours_record_and_guest_memory(place: Place) -> None:
    assert place.tried_at(VICTIM.service, "record") == ("ENOENT", "EACCES", DONE)


def test_pid_1(place: Place) -> None:
    assert place.tried("kill", "1") == ("EPERM", "EPERM", DONE)
    assert place.tried("memory", "1") == ("ENOENT", "EACCES", DONE)


@pytest.mark.parametrize("path", [VICTIM.path, VICTIM.control, HOSTILE.path, HOSTILE.control])
def test_front_end_and_control_sockets(place: Place, path: str) -> None:
    """Its own ones, too, are handed over and no files."""
    assert place.inside("connect", path) == "ENOENT"
    assert place.without_sandbox("connect", path) == "EACCES"
    if path in (VICTIM.path, VICTIM.control):  # the probe would wait for an order
        assert place.as_root("connect", path) == DONE


def test_the_hubs_metrics(place: Place) -> None:
    port = "9750"
    assert (place.inside("connect_tcp", port), place.as_root("connect_tcp", port)) == (
        "EAFNOSUPPORT",
        DONE,
    )


def test_a_neighbours_socket_file_cannot_be_replaced(place: Place) -> None:
    assert place.inside("replace", VICTIM.path) == "ENOENT"
    assert place.without_sandbox("replace", VICTIM.path) == "EACCES"
    assert place.as_root("replace", "/run/vhost-balloon/nobodys.sock") == DONE
    place.host.path("/run/vhost-balloon/nobodys.sock").unlink()


@pytest.mark.parametrize(
    "folder",
    ["/run", "/etc", "/etc/default", "/var", "/var/lib", "/var/tmp", "/usr", VENV, "/tmp", SHM],
)
def test_no_file_system_can_be_written_to(place: Place, folder: str) -> None:
    path = f"{folder}/probe"
    assert (place.inside("write", path), place.as_root("write", path)) == ("EROFS", DONE)


def test_there_is_nowhere_to_write(place: Place) -> None:
    assert place.inside("write_anywhere") == "EROFS"
    assert place.without_sandbox("write_anywhere").startswith("/")


def test_sockets_of_the_host(place: Place) -> None:
    """D-Bus and systemd's own in the file system, and any abstract one."""
    bus = place.host.path(BUS)
    place.host.run("mkdir", "-p", str(Path(BUS).parent))
    with contextlib.ExitStack() as stack:
        if not bus.exists():
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(bus))
            listener.listen()
            bus.chmod(0o666)
            stack.callback(bus.unlink)
        stack.enter_context(place.host.forker.submit(listening_abstractly).result())
        assert place.tried("connect", BUS) == ("ENOENT", DONE, DONE)
        assert place.tried("connect", "/run/systemd/private") == ("ENOENT", "EACCES", DONE)
        assert place.tried("connect", ABSTRACT) == ("ECONNREFUSED", DONE, DONE)


def test_a_flood_of_messages_to_systemd_takes_no_neighbours_watchdog(place: Place) -> None:
    host, guest = place.host, Instance("guest")
    host.drop_in(guest.service, "[Service]\nWatchdogSec=2s\n")
    try:
        with Crowd(host) as crowd:
            host.systemctl("start", guest.socket)
            crowd.attach({guest.vm: host.path(guest.path)})
            crowd.begin_using(guest.vm)
            sent = int(place.inside("flood", "8"))
            uses = crowd.end_using()
            with host.qmp(guest.control) as qmp:
                refused = qmp.execute("query-vms")[0]["refused-ranges"]
        print(f"{sent} messages, {uses}, refused: {refused}")
        assert sent > 1000
        assert uses.times > ENOUGH
        assert uses.kept == 0
        assert not refused
        assert host.show(guest.service, "NRestarts") == "0"
    finally:
        host.systemctl("stop", *guest.units)
        host.drop_in(guest.service, "")


def test_descriptors_in_flight_of_one_user_are_not_anothers(place: Place) -> None:
    other, guest = Instance("other"), Instance("guest")
    host = place.host
    host.drop_in(other.service, PROBE)
    host.systemctl("start", other.socket, other.service)
    try:
        assert place.inside("fill_flight") == "ETOOMANYREFS"
        assert place.inside("pass_one") == "ETOOMANYREFS"
        assert place.inside("pass_one", instance=other) == DONE
        with Crowd(host) as crowd:
            host.systemctl("start", guest.socket)
            crowd.attach({guest.vm: host.path(guest.path)})
            place.crowd.use()
        assert "waiting for the service manager" not in host.journal(guest.service)
        # The same with the same user: that is what a user of its own is for.
        host.drop_in(other.service, f"{PROBE}User=vb-{HOSTILE.vm}\n")
        host.systemctl("restart", other.service)
        assert place.inside("pass_one", instance=other) == "ETOOMANYREFS"
    finally:
        place.inside("end_flight")
        host.systemctl("stop", *other.units, *guest.units)
        host.drop_in(other.service, "")
    assert place.inside("pass_one") == DONE

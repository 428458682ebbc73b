"""The daemon's log in the journal of a real systemd: fields, priorities, and what becomes of them
in a sandbox or while the journal restarts."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.rig.systemd import SERVICE, WEB1, SystemdHost
from tests.rig.waiting import wait_until

pytestmark = pytest.mark.guest

GARBAGE = b"\xff" * 12


@pytest.fixture
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    """The daemon with one VM."""
    systemd_host.systemctl("start", *WEB1.units)
    yield systemd_host
    systemd_host.systemctl("stop", *WEB1.units)
    systemd_host.systemctl("reset-failed")


def entries(host: SystemdHost) -> list[dict[str, Any]]:
    """What the daemon's present process logged."""
    text = host.run("journalctl", "--output=json", "--no-pager", "-u", SERVICE).stdout
    pid = host.show(SERVICE, "MainPID")
    return [found for found in map(json.loads, text.splitlines()) if found.get("_PID") == pid]


def misbehaves(host: SystemdHost) -> dict[str, Any]:
    """Have a front end send no vhost-user; what is logged about it."""
    before = len(entries(host))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(host.path(WEB1.path)))
        sock.sendall(GARBAGE)
        sock.settimeout(30)
        with contextlib.suppress(ConnectionResetError):  # of what it did not read
            assert sock.recv(1) == b""

    def found() -> list[dict[str, Any]]:
        return [e for e in entries(host)[before:] if "connection ended" in e["MESSAGE"]]

    wait_until(lambda: bool(found()), 30)
    return found()[0]


def test_lines_have_their_priority_and_vm(host: SystemdHost) -> None:
    warning = misbehaves(host)
    assert warning["MESSAGE"].startswith("web1: connection ended: ")
    assert (warning["PRIORITY"], warning["VM"]) == ("4", "web1")
    assert (warning["_TRANSPORT"], warning["SYSLOG_IDENTIFIER"]) == ("journal", "vhost-balloon")
    said = [found for found in entries(host) if found["MESSAGE"] == "serving web1"]
    assert [(found["PRIORITY"], found.get("VM")) for found in said] == [("6", None)]
    chosen = host.run("journalctl", "--output=cat", "-p", "warning", "VM=web1").stdout
    assert warning["MESSAGE"] in chosen.splitlines()


def test_a_journal_that_restarts(host: SystemdHost) -> None:
    misbehaves(host)
    host.systemctl("restart", "systemd-journald.service")
    assert misbehaves(host)["VM"] == "web1"


def test_where_the_journals_socket_is_out_of_reach(host: SystemdHost) -> None:
    host.drop_in(SERVICE, "[Service]\nBindReadOnlyPaths=\nBindReadOnlyPaths=/run/systemd/notify\n")
    try:
        host.systemctl("restart", SERVICE)
        warning = misbehaves(host)
        assert warning["MESSAGE"].startswith("web1: connection ended: ")
        assert (warning["PRIORITY"], warning["_TRANSPORT"]) == ("4", "stdout")
    finally:
        host.drop_in(SERVICE, "")


def test_an_operators_mistake_is_an_error_of_the_unit(host: SystemdHost) -> None:
    """At a fresh start: where a VM was left, the options of the process before would be used."""
    host.systemctl("stop", *WEB1.units)
    host.drop_in(SERVICE, "[Service]\nEnvironment=VHOST_BALLOON_OPTIONS=--nonsense\nRestart=no\n")
    try:
        host.systemctl("start", SERVICE, check=False)
        text = "vhost-balloon: unrecognized arguments: --nonsense"
        command = ("journalctl", "--output=cat", "-p", "err", "-u", SERVICE)
        wait_until(lambda: text in host.run(*command).stdout.splitlines(), 30)
    finally:
        host.drop_in(SERVICE, "")

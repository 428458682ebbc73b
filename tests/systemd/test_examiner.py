"""What the examiner's rights are worth: to a daemon that was taken over, and to itself."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator

import pytest

from tests.rig.systemd import EXAMINER, EXAMINER_SOCKET, WEB1, Instance, SystemdHost
from tests.rig.waiting import wait_until
from tests.support.hostile.sandbox_probe import DONE, TOLD
from tests.support.paths import ROOT
from tests.support.vms.crowd import Crowd

HOSTILE = Instance("hostile")
PATH = "/run/vhost-balloon-examiner/access/socket"
PROBE = "[Service]\nExecStart=\nExecStart=/usr/bin/python3 {}\nWatchdogSec=0\nRestart=no\n"


@pytest.fixture(scope="module")
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    """With a daemon that was taken over, and a real one."""
    probe = (ROOT / "tests/support/hostile/sandbox_probe.py").read_text()
    systemd_host.write(TOLD, probe)
    systemd_host.drop_in(HOSTILE.service, PROBE.format(TOLD))
    systemd_host.systemctl("start", HOSTILE.socket, HOSTILE.service, WEB1.socket)
    yield systemd_host
    systemd_host.systemctl("stop", *HOSTILE.units, *WEB1.units, EXAMINER_SOCKET, EXAMINER)


def tried(host: SystemdHost, path: str, *attempt: str) -> str:
    """The result of an attempt of the process that a control socket reaches."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(host.path(path)))
        sock.sendall(json.dumps(attempt).encode() + b"\n")
        return sock.recv(400).decode()


def inside(host: SystemdHost, *attempt: str) -> str:
    return tried(host, HOSTILE.control, *attempt)


def test_a_daemon_learns_one_of_three_words_about_any_process(host: SystemdHost) -> None:
    own = host.show(HOSTILE.service, "MainPID")
    for pid, words in ((own, "free"), ("1", "free|pinned|unknown .*"), ("2", "unknown .*")):
        assert re.fullmatch(words, inside(host, "examine", f"{pid} 1073741824")), pid
    assert inside(host, "examine", "999999 1").startswith("unknown it has ended")


@pytest.mark.parametrize("question", ["", "1", "self 1", "../1 1", "1/root 1", "1 1 1", "x" * 500])
def test_a_daemon_learns_nothing_else(host: SystemdHost, question: str) -> None:
    assert inside(host, "examine", question).startswith("unknown the question is not PID BYTES")


def test_only_daemons_and_root_reach_it(host: SystemdHost) -> None:
    assert inside(host, "connect", PATH) == DONE
    assert inside(host, "replace", PATH) == "EROFS"
    other = ("setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups", "python3", TOLD)
    assert host.run(*other, "connect", PATH).stdout.strip() == "EACCES"
    assert host.run("python3", TOLD, "connect", PATH).stdout.strip() == DONE


def test_a_daemon_that_floods_it_keeps_no_other_one_from_being_answered(host: SystemdHost) -> None:
    with Crowd(host) as crowd:
        print(inside(host, "crowd_examiner", "500"), "questions are waiting")
        crowd.attach({WEB1.vm: host.path(WEB1.path)})

        def is_free() -> bool:
            with host.qmp() as qmp:
                return not qmp.execute("query-vms")[0]["pause-reasons"]

        wait_until(is_free, 10)
        for _ in range(20):
            crowd.use()
        assert "nothing is discarded" not in host.journal()
    inside(host, "end_flight")
    assert host.show(EXAMINER, "NRestarts") == "0"
    assert "internal error" not in host.journal(EXAMINER)


@pytest.fixture
def taken_over(host: SystemdHost) -> Iterator[SystemdHost]:
    """With the probe in the examiner's place. It has the examiner's rights, and its sandbox."""
    named = "[Socket]\nFileDescriptorName=control\nSocketMode=0600\n"
    host.systemctl("stop", EXAMINER_SOCKET, EXAMINER)
    host.drop_in(EXAMINER, PROBE.format(TOLD))
    host.drop_in(EXAMINER_SOCKET, named)
    host.systemctl("start", EXAMINER_SOCKET, EXAMINER)
    yield host
    host.systemctl("stop", EXAMINER_SOCKET, EXAMINER)
    host.drop_in(EXAMINER, "")
    host.drop_in(EXAMINER_SOCKET, "")


def test_the_examiners_sandbox_leaves_its_capabilities_little(taken_over: SystemdHost) -> None:
    host = taken_over
    pid = host.show(HOSTILE.service, "MainPID")
    address = host.path(f"/proc/{pid}/maps").read_text().partition("-")[0]
    for attempt, expected in (
        # To look, which includes reading memory and files; nothing else.
        (("command_line", pid), DONE),
        (("read", f"/proc/{pid}/mem"), DONE),
        (("read", "/proc/1/root/etc/passwd"), DONE),
        (("kill", pid), "EPERM"),
        (("pidfd", pid), "EPERM"),
        (("ptrace", pid), "EPERM"),
        (("prlimit", pid), "EPERM"),
        (("peek", pid, address), "EPERM"),
        (("copy_descriptor", pid), "EPERM"),
        (("memory", pid), "EACCES"),
        (("read", "/etc/shadow"), "ENOENT"),
        (("read", "/var/log/journal"), "ENOENT"),
        (("connect", WEB1.path), "ENOENT"),
        (("connect", "/run/systemd/private"), "ENOENT"),
        (("connect_tcp", "9750"), "EAFNOSUPPORT"),
        (("write", "/run/probe"), "EROFS"),
        (("write_anywhere",), "EROFS"),
    ):
        assert (attempt, tried(host, PATH, *attempt)) == (attempt, expected)

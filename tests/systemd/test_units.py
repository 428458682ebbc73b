"""What is installed on a real systemd: units that are sound and closed, and what they need."""

from __future__ import annotations

import json
import re
import stat

import pytest

from tests.rig.systemd import EXAMINER, EXAMINER_SOCKET, HUB, SERVICE, VENV, WEB1, SystemdHost
from tests.support.paths import ROOT

SERVICES = (SERVICE, HUB, EXAMINER)
SOCKETS = (WEB1.socket, WEB1.control_socket, EXAMINER_SOCKET)
README = ROOT / "systemd" / "README.md"
COMMON = {
    "RootDirectory=/RootImage=",
    "RestrictAddressFamilies=~AF_UNIX",
    "PrivateUsers=",
    "DeviceAllow=",
}
GAPS = {
    SERVICE: COMMON,
    EXAMINER: COMMON
    | {
        "CapabilityBoundingSet=~CAP_SYS_PTRACE",
        "CapabilityBoundingSet=~CAP_(DAC_*|FOWNER|IPC_OWNER)",
        "AmbientCapabilities=",
    },
    HUB: COMMON
    | {
        "RestrictAddressFamilies=~AF_(INET|INET6)",
        "PrivateNetwork=",
        "IPAddressDeny=",
    },
}
"""Each has its reason in the unit."""
BARS = {SERVICE: 0.5, HUB: 1.5, EXAMINER: 1.0}


def test_the_systemd_is_one_with_a_preserved_store(systemd_host: SystemdHost) -> None:
    assert int(systemd_host.systemctl("--version").split()[1]) >= 254


@pytest.mark.parametrize("unit", [*SERVICES, *SOCKETS])
def test_verify_finds_no_fault(systemd_host: SystemdHost, unit: str) -> None:
    done = systemd_host.run("systemd-analyze", "verify", "--man=no", unit, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_verify_would_find_one(systemd_host: SystemdHost) -> None:
    systemd_host.write("/run/systemd/system/bad.service", "[Service]\nExecStart=/bin/true\nX=1\n")
    done = systemd_host.run("systemd-analyze", "verify", "--man=no", "bad.service", check=False)
    assert "Unknown key" in done.stdout


@pytest.mark.parametrize("unit", SERVICES)
def test_exposure_is_low_and_every_gap_is_known(systemd_host: SystemdHost, unit: str) -> None:
    told = systemd_host.run("systemd-analyze", "security", "--no-pager", unit).stdout
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+) ", told)
    assert match, told
    assert float(match[1]) < BARS[unit], told
    assert f"exposure of {match[1]}" in " ".join(README.read_text().split())
    assert set(re.findall(r"^✗ (\S+)", told, re.MULTILINE)) == GAPS[unit]


def test_groups_and_folder_are_made(systemd_host: SystemdHost) -> None:
    for group in ("vhost-balloon", "vhost-balloon-control"):
        name, _, gid, members = systemd_host.run("getent", "group", group).stdout.strip().split(":")
        assert (name, members) == (group, "")
        assert 0 < int(gid) < 1000
    assert systemd_host.run("getent", "passwd", "vhost-balloon", check=False).returncode == 2
    info = systemd_host.path("/run/vhost-balloon").stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (0, 0, 0o755)


def test_only_root_reaches_the_examiner_from_outside(systemd_host: SystemdHost) -> None:
    info = systemd_host.path("/run/vhost-balloon-examiner").stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (0, 0, 0o700)


def test_a_folder_that_was_another_users_becomes_roots(systemd_host: SystemdHost) -> None:
    """Of former versions it was the user vhost-balloon's."""
    systemd_host.run("chown", "daemon:daemon", "/run/vhost-balloon")
    systemd_host.run("systemd-tmpfiles", "--create")
    info = systemd_host.path("/run/vhost-balloon").stat()
    assert (info.st_uid, info.st_gid) == (0, 0)


def test_qemus_file_names_the_installed_daemon(systemd_host: SystemdHost) -> None:
    """A management program runs what it names with --print-capabilities."""
    path = systemd_host.path("/usr/share/qemu/vhost-user/50-vhost-balloon.json")
    found = json.loads(path.read_text())
    assert found["binary"] == f"{VENV}/bin/vhost-balloon"
    printed = systemd_host.run(found["binary"], "--print-capabilities").stdout
    assert json.loads(printed)["type"] == found["type"]


def test_limits(systemd_host: SystemdHost) -> None:
    shown = systemd_host.systemctl("show", SERVICE)
    assert {
        *("LimitNOFILE=4096", "LimitNOFILESoft=4096", f"MemoryMax={256 << 20}", "TasksMax=64"),
        *("FileDescriptorStorePreserve=yes", "CollectMode=inactive-or-failed"),
    } <= set(shown.splitlines())
    text = systemd_host.path("/usr/lib/systemd/system/vhost-balloon@.service").read_text()
    assert "\nFileDescriptorStoreMax=16\n" in text


@pytest.mark.parametrize("unit", [*SERVICES, *SOCKETS])
def test_no_limit_of_starts_ends_a_unit_for_good(systemd_host: SystemdHost, unit: str) -> None:
    assert systemd_host.show(unit, "StartLimitIntervalUSec") == "0"
    if unit in SOCKETS:
        assert systemd_host.show(unit, "TriggerLimitIntervalUSec") == "0"

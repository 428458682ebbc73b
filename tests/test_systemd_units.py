"""What is installed on a real systemd: units that are sound and closed, and what they need."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest

from tests.rig.systemd import VENV, SystemdHost

SERVICES = ("vhost-balloon.service", "vhost-balloon@web1.service")
UNITS = (
    *SERVICES,
    "vhost-balloon.socket",
    "vhost-balloon-vm@web1.socket",
    "vhost-balloon@web1.socket",
)
README = Path(__file__).parents[1] / "README.md"
GAPS = {
    "SystemCallFilter=~@privileged",  # chown
    "RootDirectory=/RootImage=",
    "RestrictAddressFamilies=~AF_UNIX",
    "RestrictAddressFamilies=~AF_(INET|INET6)",
    "ProtectProc=",
    "PrivateNetwork=",
    "PrivateUsers=",
    "DeviceAllow=",
    "IPAddressDeny=",
}
"""Each has its reason in the unit."""


def test_the_systemd_is_one_with_a_preserved_store(systemd_host: SystemdHost) -> None:
    assert int(systemd_host.systemctl("--version").split()[1]) >= 254


@pytest.mark.parametrize("unit", UNITS)
def test_verify_finds_no_fault(systemd_host: SystemdHost, unit: str) -> None:
    done = systemd_host.run("systemd-analyze", "verify", "--man=no", unit, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_verify_would_find_one(systemd_host: SystemdHost) -> None:
    systemd_host.write("/run/systemd/system/bad.service", "[Service]\nExecStart=/bin/true\nX=1\n")
    done = systemd_host.run("systemd-analyze", "verify", "--man=no", "bad.service", check=False)
    assert "Unknown key" in done.stdout


@pytest.mark.parametrize("unit", SERVICES)
def test_exposure_is_below_2_and_every_gap_is_known(systemd_host: SystemdHost, unit: str) -> None:
    told = systemd_host.run("systemd-analyze", "security", "--no-pager", unit).stdout
    match = re.search(r"Overall exposure level for \S+: ([0-9.]+) ", told)
    assert match, told
    assert float(match[1]) < 2.0, told
    assert f"exposure of {match[1]}" in " ".join(README.read_text().split())
    assert set(re.findall(r"^✗ (\S+)", told, re.MULTILINE)) == GAPS


def test_user_and_folder_are_made(systemd_host: SystemdHost) -> None:
    line = systemd_host.run("getent", "passwd", "vhost-balloon").stdout
    name, _, uid, gid, _, home, shell = line.strip().split(":")
    assert (name, home, shell) == ("vhost-balloon", "/run/vhost-balloon", "/usr/sbin/nologin")
    info = systemd_host.path("/run/vhost-balloon").stat()
    assert (info.st_uid, info.st_gid) == (int(uid), int(gid))
    assert stat.S_IMODE(info.st_mode) == 0o755


def test_qemus_file_names_the_installed_daemon(systemd_host: SystemdHost) -> None:
    """A management program runs what it names with --print-capabilities."""
    path = systemd_host.path("/usr/share/qemu/vhost-user/50-vhost-balloon.json")
    found = json.loads(path.read_text())
    assert found["binary"] == f"{VENV}/bin/vhost-balloon"
    printed = systemd_host.run(found["binary"], "--print-capabilities").stdout
    assert json.loads(printed)["type"] == found["type"]


@pytest.mark.parametrize(
    ("unit", "vms"), [("vhost-balloon.service", 500), ("vhost-balloon@web1.service", 1)]
)
def test_limits_have_room_for_the_descriptors_of_all_vms(
    systemd_host: SystemdHost, unit: str, vms: int
) -> None:
    stored = int(systemd_host.show(unit, "FileDescriptorStoreMax"))
    opened = int(systemd_host.show(unit, "LimitNOFILE"))
    assert 21 * vms * 1.25 < stored < opened
    assert opened == int(systemd_host.show(unit, "LimitNOFILESoft"))

"""What the policy needs of a real systemd: the host's files, its own folder, and reloading."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from tests.rig.systemd import HUB, OPTIONS, SERVICE, WEB1, SystemdHost
from tests.rig.waiting import wait_until
from tests.support.paths import ROOT

HUB_OPTIONS: Final = "/etc/default/vhost-balloon-hub"
FILE: Final = "/etc/vhost-balloon/hub.toml"
VM_FILE: Final = "/etc/vhost-balloon/web1.toml"
FOLDER: Final = "/run/vhost-balloon-hub"
CONTROL: Final = f"{FOLDER}/control"
LOCK: Final = "/run/vhost-balloon/policy.lock"
STAND_IN: Final = "/opt/host_files.py"
GROUP: Final = "vhost-balloon-control"


@pytest.fixture
def host(systemd_host: SystemdHost) -> Iterator[SystemdHost]:
    """Neither a hub nor a VM's daemon runs before, and none after."""
    yield systemd_host
    systemd_host.systemctl("stop", HUB, *WEB1.units)
    systemd_host.systemctl("reset-failed")


@contextmanager
def options(host: SystemdHost, path: str, name: str, *given: str) -> Iterator[None]:
    host.write(path, f'{name}="{" ".join(given)}"\n')
    try:
        yield
    finally:
        host.path(path).unlink()


@pytest.fixture
def hub(host: SystemdHost) -> Iterator[SystemdHost]:
    """A hub with a file of settings, as README says."""
    write_settings(host, 'mode = "dry-run"')
    with options(host, HUB_OPTIONS, "VHOST_BALLOON_HUB_OPTIONS", f"--config={FILE}"):
        host.systemctl("start", HUB)
        yield host


def write_settings(host: SystemdHost, *lines: str) -> None:
    host.write(FILE, "\n".join(["[policy]", *lines, ""]))


def policy(host: SystemdHost) -> dict[str, Any]:
    with host.qmp(CONTROL) as qmp:
        found: dict[str, Any] = qmp.execute("query-policy")
    return found


def number(host: SystemdHost, database: str, name: str) -> int:
    return int(host.run("getent", database, name).stdout.split(":")[2])


def owner(host: SystemdHost, path: str) -> tuple[int, int, int]:
    info = host.path(path).stat()
    return info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)


def connects(host: SystemdHost, group: str) -> bool:
    """Whether another user with this group can connect to the hub's control socket."""
    user = ("setpriv", "--reuid=12345", "--regid=12345", f"--groups={number(host, 'group', group)}")
    program = f"import socket; socket.socket(socket.AF_UNIX).connect('{CONTROL}')"
    return host.run(*user, "python3", "-c", program, check=False).returncode == 0


def can_lock(host: SystemdHost, *user: str) -> bool:
    program = f"import fcntl; fcntl.flock(open('{LOCK}'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return host.run(*user, "python3", "-c", program, check=False).returncode == 0


def test_the_hosts_files_are_handed_over(host: SystemdHost) -> None:
    host.write(STAND_IN, (ROOT / "tests/systemd/host_files.py").read_text())
    host.drop_in(
        HUB, f"[Service]\nExecStart=\nExecStart=/usr/bin/python3 {STAND_IN}\nWatchdogSec=0\n"
    )
    try:
        host.systemctl("start", HUB)
        line = host.wait_logged("FOUND ", HUB).partition("FOUND ")[2].partition("\n")[0]
    finally:
        host.systemctl("stop", HUB)
        host.drop_in(HUB, "")
    found = json.loads(line)
    # This kernel has no ZFS, which does not stop the service.
    pressure = ["memory-pressure"] * os.path.exists("/proc/pressure/memory")
    assert found["names"] == ["meminfo", *pressure]
    assert found["lines"]["meminfo"].startswith("MemTotal: ")
    if pressure:
        assert found["lines"]["memory-pressure"].startswith("some avg10=")
    assert found["writable"] == []
    assert found["fresh"], "figures at each read"
    # By path there is neither: that is why they are handed over.
    assert found["visible"] == ["/sys/fs/cgroup/cgroup.controllers", LOCK]
    assert found["run"] == ["systemd", "vhost-balloon", "vhost-balloon-hub"]
    assert found["run folder"] == FOLDER


def test_who_reaches_the_control_socket(hub: SystemdHost) -> None:
    user, group = number(hub, "passwd", "vhost-balloon-hub"), number(hub, "group", GROUP)
    assert owner(hub, FOLDER) == (user, group, 0o755)
    assert owner(hub, CONTROL) == (user, group, 0o660)
    assert connects(hub, GROUP)
    assert not connects(hub, "vhost-balloon")
    assert policy(hub)["configured-mode"] == "dry-run"


def test_the_hubs_folder_is_kept_over_restarts(hub: SystemdHost) -> None:
    hub.write(f"{FOLDER}/kept", "")
    hub.systemctl("restart", HUB)
    hub.wait_replaced(hub.kill(unit=HUB), HUB)
    assert hub.path(f"{FOLDER}/kept").exists()
    assert policy(hub)["configured-mode"] == "dry-run"
    hub.systemctl("stop", HUB)
    assert not hub.path(FOLDER).exists()


def test_the_hub_can_lock_the_folder_of_control_sockets(hub: SystemdHost) -> None:
    group = number(hub, "group", GROUP)
    assert owner(hub, LOCK) == (0, group, 0o640)
    stranger = ("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups")
    assert not can_lock(hub, *stranger)
    wait_until(lambda: not can_lock(hub), 30)  # the hub decides
    hub.systemctl("stop", HUB)
    assert can_lock(hub)


def test_without_settings_the_hub_costs_nothing(host: SystemdHost) -> None:
    host.systemctl("start", HUB)
    assert policy(host)["mode"] == "off"
    assert can_lock(host)
    host.systemctl("stop", HUB)


def test_reloading_the_hub(hub: SystemdHost) -> None:
    pid = hub.show(HUB, "MainPID")
    write_settings(hub, 'mode = "on"')
    hub.systemctl("reload", HUB)
    wait_until(lambda: policy(hub)["mode"] == "on", 30)
    write_settings(hub, 'mode = "dry-run"', "reserve = 10%")
    assert "failed" in hub.systemctl("reload", HUB, check=False)
    hub.wait_logged(f"vhost-balloon-hub: {FILE}: line 3: 'reserve' needs quotes", HUB)
    assert policy(hub)["configured-mode"] == "on", "what was in force stays"
    hub.path(FILE).chmod(0o600)
    assert "failed" in hub.systemctl("reload", HUB, check=False)
    hub.wait_logged(f"vhost-balloon-hub: cannot read {FILE}: Permission denied", HUB)
    hub.path(FILE).chmod(0o644)
    write_settings(hub, 'mode = "off"')
    hub.systemctl("reload", HUB)
    wait_until(lambda: policy(hub)["mode"] == "off", 30)
    assert (hub.show(HUB, "MainPID"), hub.show(HUB, "NRestarts")) == (pid, "0")


def test_a_mistake_at_the_start_of_the_hub_is_one_line(host: SystemdHost) -> None:
    write_settings(host, 'mode = "auto"')
    with options(host, HUB_OPTIONS, "VHOST_BALLOON_HUB_OPTIONS", f"--config={FILE}"):
        host.systemctl("start", HUB, check=False)
        host.wait_logged(f"vhost-balloon-hub: {FILE}: line 2: 'mode' expects one of", HUB)
        host.wait_logged("Main process exited, code=exited, status=2", HUB)
        write_settings(host, 'mode = "on"')
        wait_until(lambda: host.show(HUB, "ActiveState") == "active", 60)


def target(host: SystemdHost) -> object:
    with host.qmp() as qmp:
        return qmp.execute("query-vms")[0]["settings"].get("target")


def test_reloading_a_vms_daemon(host: SystemdHost) -> None:
    host.write(VM_FILE, 'target = "1G"\n')
    with options(host, OPTIONS, "VHOST_BALLOON_OPTIONS", f"--config={VM_FILE}"):
        host.systemctl("start", *WEB1.units)
        pid = host.show(SERVICE, "MainPID")
        assert target(host) == 1 << 30
        host.write(VM_FILE, 'target = "2G"\n')
        host.systemctl("reload", SERVICE)
        assert target(host) == 2 << 30
        assert "web1: changed target" in host.journal()
        host.write(VM_FILE, "\ntarget = 2G\n")
        assert "failed" in host.systemctl("reload", SERVICE, check=False)
        host.wait_logged(f"vhost-balloon: {VM_FILE}: line 2: 'target' needs quotes")
        assert target(host) == 2 << 30, "what was in force stays"
        host.write(VM_FILE, 'target = "3G"\n')
        host.write(OPTIONS, 'VHOST_BALLOON_OPTIONS="--nonsense"\n')
        assert "failed" in host.systemctl("reload", SERVICE, check=False)
        host.wait_logged("vhost-balloon: unrecognized arguments: --nonsense")
        assert target(host) == 2 << 30, "nothing is reloaded if the next start would fail"
        assert (host.show(SERVICE, "MainPID"), host.show(SERVICE, "NRestarts")) == (pid, "0")


def test_reloading_a_vms_daemon_without_a_file(host: SystemdHost) -> None:
    host.systemctl("start", *WEB1.units)
    assert "failed" in host.systemctl("reload", SERVICE, check=False)
    host.wait_logged("vhost-balloonctl: web1: this daemon was started without --config")
    assert host.show(SERVICE, "ActiveState") == "active"

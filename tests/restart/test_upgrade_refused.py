"""Upgrades in place that fail: each is an error of the command, and the VM continues to be served.

All without a service manager, which would start the program again; with one, nothing is checked
beforehand.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
from functools import partial
from pathlib import Path

import pytest

from tests.rig.errors import QMPError
from tests.support.end_to_end import ByHand, by_hand, eventually
from tests.support.paths import TLS
from tests.support.restarting.scenario import Host, hosting


async def is_refused(host: Host, guest: ByHand, *reasons: str) -> None:
    """Try by command and by signal; both fail for one of reasons, and change nothing."""
    pid, served, log = host.manager.process.pid, host.log().count("info: serving"), len(host.log())
    with pytest.raises(QMPError) as error:
        host.ask("upgrade")
    assert any(reason in str(error.value) for reason in reasons), error.value
    host.manager.process.send_signal(signal.SIGHUP)
    await eventually(lambda: "not re-executed: " in host.log()[log:])
    assert any(reason in host.log()[log:] for reason in reasons)
    await guest.inflate([5000])
    assert host.vm()["attached"]
    assert (host.manager.process.pid, host.manager.restarts) == (pid, 0)
    assert host.log().count("info: serving") == served
    assert "Traceback" not in host.log()


async def goes_on(host: Host, guest: ByHand) -> None:
    """Upgrade after the obstacle has gone."""
    served = host.log().count("info: serving")
    host.ask("upgrade")
    await eventually(lambda: host.log().count("info: serving") > served)
    await guest.inflate([5001])


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder whose packages take precedence over installed ones."""
    folder = tmp_path / "packages"
    folder.mkdir()
    return folder


async def test_a_library_that_is_half_installed(tmp_path: Path, packages: Path) -> None:
    environment = {"PYTHONPATH": str(packages)}
    options = ("--metrics-address=127.0.0.1:0",)
    async with (
        hosting(tmp_path, *options, limit=0, environment=environment) as host,
        by_hand(host.path()) as guest,
    ):
        half = packages / "prometheus_client"
        half.mkdir()
        (half / "__init__.py").write_text("from .nowhere import nothing\n")
        await is_refused(host, guest, "No module named 'prometheus_client")
        shutil.rmtree(half)
        await goes_on(host, guest)


async def test_a_certificate_that_is_missing_or_does_not_match(tmp_path: Path) -> None:
    certificate, key = tmp_path / "first.pem", tmp_path / "first.key.pem"
    for path in (certificate, key):
        shutil.copy(TLS / path.name, path)
    options = (f"--metrics-certificate={certificate}", f"--metrics-key={key}")
    async with (
        hosting(tmp_path, "--metrics-address=127.0.0.1:0", *options, limit=0) as host,
        by_hand(host.path()) as guest,
    ):
        shutil.copy(TLS / "second.key.pem", key)
        await is_refused(host, guest, "for TLS")
        key.unlink()
        await is_refused(host, guest, "for TLS")
        shutil.copy(TLS / key.name, key)
        await goes_on(host, guest)


async def test_a_file_with_a_mistake_or_none(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("")
    async with (
        hosting(tmp_path, f"--config={file}", limit=0) as host,
        by_hand(host.path()) as guest,
    ):
        file.write_text("[defaults\n")
        await is_refused(host, guest, "line 1")
        file.unlink()
        await is_refused(host, guest, "No such file")
        file.write_text("")
        await goes_on(host, guest)


async def test_an_address_that_this_machine_no_longer_has(tmp_path: Path, packages: Path) -> None:
    """A library that resolves names differently stands for a changed network."""
    environment = {"PYTHONPATH": str(packages)}
    options = ("--metrics-address=127.0.0.1:0",)
    async with (
        hosting(tmp_path, *options, limit=0, environment=environment) as host,
        by_hand(host.path()) as guest,
    ):
        (packages / "sitecustomize.py").write_text(
            "import socket\n"
            "def bind(self, address): raise OSError(99, 'Cannot assign requested address')\n"
            "socket.socket.bind = bind\n"
        )
        await is_refused(host, guest, "Cannot assign requested address")
        (packages / "sitecustomize.py").unlink()
        await goes_on(host, guest)


async def test_no_descriptor_is_left(tmp_path: Path) -> None:
    async with hosting(tmp_path, limit=0) as host, by_hand(host.path()) as guest:
        pid = host.manager.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        used = open_descriptors(host)
        for left in (4, 5):  # the pipes to the new program need six
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + left, limits[1]))
            await is_refused(host, guest, "Too many open files")
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
        await goes_on(host, guest)


def deniable(packages: Path, function: str, error: str) -> Path:
    """Have a function of os fail with an error while the returned file exists."""
    flag = packages / "denied"
    (packages / "sitecustomize.py").write_text(
        "import os\n"
        f"real = os.{function}\n"
        "def deniable(*arguments):\n"
        f"    if os.path.exists({str(flag)!r}):\n"
        f"        raise {error}\n"
        "    return real(*arguments)\n"
        f"os.{function} = deniable\n"
    )
    return flag


async def test_no_memory_file_can_be_created(tmp_path: Path, packages: Path) -> None:
    """As if a seccomp filter denied memfd_create."""
    denied = deniable(packages, "memfd_create", "PermissionError(1, 'Operation not permitted')")
    environment = {"PYTHONPATH": str(packages)}
    async with (
        hosting(tmp_path, limit=0, environment=environment) as host,
        by_hand(host.path()) as guest,
    ):
        denied.touch()
        await is_refused(host, guest, "Operation not permitted")
        denied.unlink()
        await goes_on(host, guest)


async def test_a_program_that_cannot_be_executed(tmp_path: Path, packages: Path) -> None:
    """The check succeeded: everything prepared since is undone."""
    denied = deniable(packages, "execv", "OSError(26, 'Text file busy')")
    environment = {"PYTHONPATH": str(packages)}
    async with (
        hosting(tmp_path, limit=0, environment=environment) as host,
        by_hand(host.path()) as guest,
    ):
        denied.touch()
        served, used = host.log().count("info: serving"), open_descriptors(host)
        for number in range(1, 4):
            host.ask("upgrade")
            await eventually(partial(is_logged, host, "Text file busy", number))
            await guest.inflate([5000])
        await eventually(lambda: open_descriptors(host) <= used)
        assert host.log().count("info: serving") == served
        denied.unlink()
        await goes_on(host, guest)


def is_logged(host: Host, text: str, times: int) -> bool:
    return host.log().count(text) == times


def open_descriptors(host: Host) -> int:
    return len(os.listdir(f"/proc/{host.manager.process.pid}/fd"))


@pytest.mark.parametrize("limit", [0, 16])
async def test_nothing_is_left_behind_by_upgrades(tmp_path: Path, limit: int) -> None:
    options = ("--metrics-address=127.0.0.1:0",)
    async with (
        hosting(tmp_path, *options, limit=limit) as host,
        by_hand(host.path()) as guest,
    ):
        await goes_on(host, guest)
        await eventually(partial(is_logged, host, "metrics on http", 2))  # they listen again
        used = open_descriptors(host)
        stored = len(host.manager.names())
        for _ in range(3):
            await goes_on(host, guest)
        await eventually(lambda: open_descriptors(host) <= used)
        await eventually(lambda: len(host.manager.names()) <= stored)


async def test_an_upgrade_costs_no_descriptors(tmp_path: Path) -> None:
    async with hosting(tmp_path, limit=0) as host, by_hand(host.path()) as guest:
        await guest.inflate([5000])
        used = open_descriptors(host)
        await goes_on(host, guest)
        await eventually(lambda: open_descriptors(host) <= used)


async def test_sigterm_ends_it_in_the_middle_of_a_check(tmp_path: Path, packages: Path) -> None:
    environment = {"PYTHONPATH": str(packages)}
    waiting = tmp_path / "waiting"
    async with hosting(tmp_path, limit=0, environment=environment) as host:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(waiting))
            sock.listen()
            (packages / "sitecustomize.py").write_text(
                "import socket\n"
                "sock = socket.socket(socket.AF_UNIX)\n"
                f"sock.connect({str(waiting)!r})\n"
                "sock.recv(1)\n"
            )
            host.manager.process.send_signal(signal.SIGHUP)
            sock.settimeout(20)
            checking, _ = sock.accept()
            with checking:
                assert host.manager.stop(signal.SIGTERM) == 0

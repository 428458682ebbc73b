"""Starts and restarts without a secondary service, with and without a waiting guest."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.rig.qmp import QMPClient
from tests.rig.waiting import wait_until
from tests.support.command import listening, run
from tests.support.end_to_end import MIB, by_hand, eventually
from tests.support.paths import TLS
from tests.support.restarting.handing_over import handed
from tests.support.restarting.scenario import hosting
from tests.support.restarting.service_manager import ServiceManager
from vhost_balloon import fds


@contextmanager
def taken_port() -> Iterator[tuple[socket.socket, str]]:
    """A port that is in use, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken, f"127.0.0.1:{taken.getsockname()[1]}"


def scraped(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=1) as answer:
            return b"vhost_balloon_connected" in answer.read()
    except OSError:
        return False


def options_of(manager: ServiceManager, *options: str) -> None:
    """Replace or add an option for the next process."""
    names = {option.partition("=")[0] for option in options}
    kept = [option for option in manager.options if option.partition("=")[0] not in names]
    manager.options = (*kept, *options)


# Restarts with a VM


async def test_metrics_come_back_once_their_port_is_free(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        with taken_port() as (taken, address):
            options_of(host.manager, f"--metrics-address={address}")
            host.manager.kill()
            await guest.inflate([5000])
            await eventually(lambda: "trying again until it works" in host.log())
            assert f"warning: cannot listen on {address}: Address already in use" in host.log()
            taken.close()
            await eventually(lambda: scraped(address))
        assert host.log().count("Address already in use") == 1
        await guest.inflate([5001])


async def test_metrics_come_back_with_their_certificate(tmp_path: Path) -> None:
    for name in ("first.pem", "first.key.pem", "second.key.pem"):
        shutil.copy(TLS / name, tmp_path)
    certificate, key = tmp_path / "first.pem", tmp_path / "key.pem"
    shutil.copy(tmp_path / "second.key.pem", key)  # half renewed: the key does not match
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        options_of(
            host.manager,
            "--metrics-address=127.0.0.1:0",
            f"--metrics-certificate={certificate}",
            f"--metrics-key={key}",
        )
        host.manager.kill()
        await guest.inflate([5000])
        await eventually(lambda: "for TLS" in host.log())
        shutil.copy(tmp_path / "first.key.pem", key)
        await eventually(lambda: "metrics on https://" in host.log())


async def test_the_control_socket_comes_back_with_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "away"
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        options_of(host.manager, f"--control-socket={folder}/control")
        host.manager.kill()
        await guest.inflate([5000])
        await eventually(lambda: "trying again until it works" in host.log())
        folder.mkdir()
        await eventually(lambda: (folder / "control").is_socket())
        await guest.inflate([5001])


@pytest.mark.parametrize(
    "option",
    [
        "--report-rate=fast",
        "--no-such-option",
        "--fd=3",
        "--control-group=nobody-has-this-name",
        "--metrics-key=/nowhere",
        "--socket-group=nobody-has-this-name",
        "--config=/nowhere",
        "--version",
        "--check-config",
    ],
)
async def test_a_mistake_in_the_options_strands_no_vm(tmp_path: Path, option: str) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        await guest.inflate([5000])
        good = host.manager.options
        host.manager.options = (*good, option)
        for page in (5001, 5002):  # the second process must not adopt the mistake
            host.manager.kill()
            await guest.inflate([page])
            assert host.vm()["attached"]
        host.manager.options = good
        host.manager.kill()
        before = len(host.log())
        host.manager.kill()
        assert "rror" not in host.log()[before:]
        await guest.inflate([5003])


async def test_a_handed_over_descriptor_that_is_not_a_socket_strands_no_vm(tmp_path: Path) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        host.manager.stored.append(("db", os.open(os.devnull, os.O_RDONLY)))
        host.manager.kill()
        await guest.inflate([5000])
        assert "'db' handed over: Socket operation on non-socket" in host.log()


@pytest.mark.parametrize("more", [4, 10])
async def test_a_vm_waits_for_descriptors_and_loses_nothing(tmp_path: Path, more: int) -> None:
    """The limit was lowered: it covers the stored descriptors, but no front end."""
    program, limit = tmp_path / "limited.py", tmp_path / "limit"
    program.write_text(
        "import os, resource, runpy\n"
        f"if os.path.exists({str(limit)!r}):\n"
        f"    soft = int(open({str(limit)!r}).read())\n"
        "    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))\n"
        "runpy.run_module('vhost_balloon', run_name='__main__')\n"
    )
    async with hosting(tmp_path, program=(str(program),)) as host, by_hand(host.path()) as guest:
        await guest.inflate([5000])
        limit.write_text(str(3 + len(host.manager.names()) + more))
        host.manager.kill(wait=False)
        await eventually(lambda: "the VM has to wait: Too many open files" in host.log())
        limit.unlink()
        host.manager.kill()
        await guest.inflate([5001])
        assert (host.manager.restarts, host.vm()["state"]) == (2, "done")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_settings_that_were_changed_are_in_force_after_a_restart(
    tmp_path: Path, how: signal.Signals
) -> None:
    async with hosting(tmp_path) as host, by_hand(host.path()) as guest:
        path = "/machine/peripheral/vm1"
        host.ask("qom-set", path=path, property="guest-stats-polling-interval", value=7)
        host.manager.kill()
        assert host.vm()["stats-interval"] == 7, "an order holds while the setting is the same"
        options_of(host.manager, "--stats-interval=11", "--socket-mode=0660", "--discard=never")
        host.manager.stop(how)
        host.manager.start()
        vm = host.vm()
        assert (vm["stats-interval"], vm["pause-reasons"]) == (11, ["discard-never"])
        assert stat.S_IMODE(host.path().stat().st_mode) == 0o660
        await guest.inflate([5000])


async def test_a_target_that_was_changed_in_the_file_is_in_force_after_a_restart(
    tmp_path: Path,
) -> None:
    file = tmp_path / "config.toml"

    def say(target: str) -> None:
        file.write_text(f'target = "{target}"\n')

    say("48M")
    async with hosting(tmp_path, f"--config={file}") as host, by_hand(host.path()) as guest:
        host.ask("balloon", value=40 * MIB)
        host.manager.kill()
        assert host.vm()["target"] == 40 * MIB, "an order holds while the file is the same"
        say("32M")
        host.manager.kill()
        assert host.vm()["target"] == 32 * MIB
        told = (await guest.front_end.get_config())[:4]
        assert int.from_bytes(told, "little") == 32 * MIB // 4096


# Fresh starts


def test_the_second_of_two_instances_with_one_metrics_address_serves_its_vm(
    tmp_path: Path,
) -> None:
    """The socket is the service manager's: QEMU may have connected and would hang."""
    with taken_port() as (taken, address):
        options = (f"--control-socket={tmp_path}/control", f"--metrics-address={address}")
        with handed(*options, web2=listening(tmp_path / "web2.sock")) as started:
            assert started.told().startswith("READY=1")
            with QMPClient(tmp_path / "control") as qmp:
                assert [vm["id"] for vm in qmp.execute("query-vms")] == ["web2"]
            started.wait_logged("Address already in use; trying again until it works")
            taken.close()
            wait_until(lambda: scraped(address), 10)
            code, log = started.end()
    assert (code, "Address already in use" in log) == (0, False), "reported once"


def test_without_guests_a_taken_port_is_the_operators_mistake(tmp_path: Path) -> None:
    with taken_port() as (_, address):
        done = run(f"--socket-path={tmp_path}/vm", f"--metrics-address={address}")
    assert done.returncode == 2
    assert done.stderr == f"vhost-balloon: cannot listen on {address}: Address already in use\n"


@pytest.mark.parametrize("address", ["/nowhere", "vsock:2:1234", "here", "@nobody-is-here"])
def test_a_notification_socket_that_leads_nowhere_is_a_warning(
    tmp_path: Path, address: str
) -> None:
    environment = os.environ | {"NOTIFY_SOCKET": address, "FDSTORE": "many", "WATCHDOG_USEC": "x"}
    with served(tmp_path, environment) as (process, said):
        process.terminate()
        process.communicate(timeout=10)
        assert process.returncode == 0
        log = "".join(said)
        assert log.count("NOTIFY_SOCKET") == 1
        assert "Traceback" not in log


@pytest.mark.parametrize("limit", [0, 100])
def test_a_service_manager_that_does_not_read_delays_nothing(tmp_path: Path, limit: int) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"{tmp_path}/notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    filler.sendto(b"x", manager.getsockname())
        environment = {"NOTIFY_SOCKET": manager.getsockname(), "FDSTORE": str(limit)}
        with served(tmp_path, os.environ | environment) as (process, _):
            process.terminate()
            process.communicate(timeout=5)
            assert process.returncode == 0


@contextmanager
def served(
    folder: Path, environment: dict[str, str]
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A daemon that accepts front ends, and its log until then."""
    path = folder / "vm.sock"
    command = [sys.executable, "-m", "vhost_balloon", f"--socket-path={path}"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = [process.stderr.readline()]
            while "serving vm" not in said[-1]:
                assert said[-1], said
                said.append(process.stderr.readline())
            yield process, said
        finally:
            process.kill()


@pytest.mark.parametrize("error", [ValueError("not allowed"), OSError(1, "")])
def test_a_limit_that_cannot_be_raised_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    asked: list[tuple[int, int]] = []

    def setrlimit(what: int, limits: tuple[int, int]) -> None:
        asked.append(limits)
        raise error

    monkeypatch.setattr("resource.setrlimit", setrlimit)
    monkeypatch.setattr("resource.getrlimit", lambda what: (1024, 1 << 30))
    fds.raise_descriptor_limit()
    assert asked == [(1 << 30, 1 << 30), (fds._kernel_limit(),) * 2]

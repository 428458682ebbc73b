"""What cannot be opened when the hub starts costs nothing else, and is tried again."""

from __future__ import annotations

import socket
import threading
import urllib.request
from pathlib import Path
from typing import IO

import pytest
import trio
from trio.testing import MockClock

from tests.support.control_client import GIB
from tests.support.fakes.host_vms import daemons
from tests.support.fakes.policed_vm import PolicedVm
from tests.support.restarting.hub_place import SHORT, HubPlace, policy, until_line
from vhost_balloon.errors import OperatorError
from vhost_balloon.hub.__main__ import OPENING, _check_memory
from vhost_balloon.hub.handed import NOTHING
from vhost_balloon.policy.host import HostInputs
from vhost_balloon.policy.settings import Mode, PolicySettings


@pytest.fixture
def place(short_folder: Path) -> HubPlace:
    return HubPlace(short_folder)


def until_metrics(log: IO[str]) -> str:
    """The text of the metrics, as soon as there is an address."""
    while "metrics on " not in (line := log.readline()):
        assert line, "the hub ended"
    with urllib.request.urlopen(line.split()[-1], timeout=20) as answer:
        return str(answer.read().decode())


async def test_a_port_in_use_costs_the_metrics_until_it_is_free(place: HubPlace) -> None:
    place.configure("on")
    place.host_has(SHORT)
    vm = PolicedVm()
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        socket.create_server(("127.0.0.1", 0)) as taken,
    ):
        manager.bind(str(place.notify))
        manager.settimeout(20)
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with daemons(place.vms, {"web1": vm.behave}):
            with place.hub(f"--metrics-address={address}", NOTIFY_SOCKET=str(place.notify)) as (
                process,
                log,
            ):
                until_line(log, f"cannot listen on {address}: Address already in use; trying again")
                assert "READY=1" in manager.recv(4096).decode()
                async with place.client():
                    with trio.fail_after(20):
                        await vm.ordered.wait()
                taken.close()
                text = await trio.to_thread.run_sync(until_metrics, log)
                assert 'vhost_balloon_up{vm="web1"}' in text
                process.terminate()
                assert process.wait(5) == 0


async def test_a_certificate_that_is_missing_costs_the_metrics(place: HubPlace) -> None:
    with place.hub(f"--metrics-certificate={place.run}/none.pem") as (process, log):
        until_line(log, "none.pem for TLS: No such file or directory; trying again")
        async with place.client() as client:
            assert (await client.execute("query-policy"))["mode"] == "off"
        process.terminate()
        assert process.wait(5) == 0


@pytest.mark.parametrize("kind", ["file", "socket"])
async def test_an_occupied_run_folder_costs_the_control_socket(place: HubPlace, kind: str) -> None:
    place.configure("on")
    place.host_has(SHORT)
    vm, path = PolicedVm(), place.run / "control"
    with socket.socket(socket.AF_UNIX) as other:
        if kind == "socket":
            other.bind(str(path))
            other.listen()
        else:
            path.touch()
        async with daemons(place.vms, {"web1": vm.behave}):
            with place.hub() as (process, log):
                await trio.to_thread.run_sync(until_metrics, log)
                with trio.fail_after(20):
                    await vm.ordered.wait()
                assert process.poll() is None
                path.unlink()
                async with place.client() as client:
                    assert (await client.execute("query-policy"))["mode"] == "on"


async def test_a_cgroup_may_be_made_later(place: HubPlace) -> None:
    cgroup, new = place.vms.parent / "cgroup", place.vms.parent / "new"
    place.config.write_text(f'[policy]\nmode = "on"\ncgroup = "{cgroup}"\n')
    with place.hub() as (_, log):
        until_line(log, f"the policy decides nothing: the policy cannot read the host's memory: the"
                   f" cgroup's {cgroup}/")  # fmt: skip
        async with place.client() as client:
            told = await client.execute("query-policy")
            assert (told["mode"], told["host-readable"]) == ("on", False)
            new.mkdir()
            for name, text in (
                ("memory.max", f"{8 * GIB}\n"),
                ("memory.current", f"{GIB}\n"),
                ("memory.stat", "file 0\nshmem 0\n"),
            ):
                (new / name).write_text(text)
            new.rename(cgroup)
            told = await policy(client, lambda told: "host" in told)
            assert told["host"]["total"] == 8 * GIB
            assert told["problems"] == []


async def test_a_host_file_that_hangs_is_left_to_the_policy(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    goes_on = threading.Event()
    monkeypatch.setattr(HostInputs, "open", lambda *_: goes_on.wait(60))
    try:
        await _check_memory(PolicySettings(Mode.ON), NOTHING)
    finally:
        goes_on.set()
    assert trio.current_time() >= OPENING


async def test_only_the_policy_needs_the_hosts_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OperatorError("no meminfo")

    monkeypatch.setattr(HostInputs, "open", fail)
    await _check_memory(PolicySettings(), NOTHING)
    with pytest.raises(OperatorError, match="no meminfo"):
        await _check_memory(PolicySettings(Mode.DRY_RUN), NOTHING)

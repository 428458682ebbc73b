"""The hub as a process with the policy off, in dry-run and on: its socket, signals and files."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import trio

from tests.support.control_client import GIB, Client, request
from tests.support.fakes.host_vms import daemons
from tests.support.fakes.policed_vm import PolicedVm

WELL = 7 * GIB
SHORT = GIB
"""Of 16 GiB, with the default reserve of 2.3 GiB."""


class Place:
    """Folders, files and the service manager's socket of a hub."""

    def __init__(self, folder: Path) -> None:
        self.vms, self.run = folder / "vms", folder / "run"
        self.vms.mkdir()
        self.run.mkdir()
        self.meminfo, self.config = folder / "meminfo", folder / "hub.toml"
        self.host_has(WELL)
        self.configure("off")
        self.notify = folder / "notify"

    def host_has(self, available: int) -> None:
        """Write meminfo in place: the hub has it open."""
        text = f"MemTotal: {16 * GIB >> 10} kB\nMemAvailable: {available >> 10} kB\n"
        self.meminfo.write_text(text)

    def configure(self, mode: str) -> None:
        self.config.write_text(f'[policy]\nmode = "{mode}"\n')

    @contextmanager
    def hub(self, **more: str) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
        """A hub that was given meminfo by the service manager; it, and its log."""
        options = (f"--folder={self.vms}", f"--run-folder={self.run}", f"--config={self.config}")
        command = [sys.executable, "-m", "vhost_balloon.hub", "--metrics-address=:0", *options]
        with self.meminfo.open() as file:
            program = (
                "import os, sys\n"
                f"os.dup2({file.fileno()}, 3)\n"
                "os.environ['LISTEN_PID'] = str(os.getpid())\n"
                f"os.execv(sys.executable, {command!r})"
            )
            started = subprocess.Popen(
                [sys.executable, "-c", program],
                env=os.environ | {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "meminfo"} | more,
                stderr=subprocess.PIPE,
                pass_fds=[file.fileno()],
                text=True,
            )
        with started as process:
            try:
                assert process.stderr is not None
                yield process, process.stderr
            finally:
                process.kill()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A client of the hub, as soon as it listens."""
        with trio.fail_after(20):
            while True:
                try:
                    stream = await trio.open_unix_socket(str(self.run / "control"))
                except OSError:
                    await trio.sleep(0.02)
                else:
                    break
        async with stream:
            client = Client(stream)
            await client.negotiate()
            yield client

    def locked(self, process: subprocess.Popen[str]) -> bool:
        """Whether the hub has the lock's file open."""
        folder = Path(f"/proc/{process.pid}/fd")
        return any("policy.lock" in os.readlink(link) for link in folder.iterdir())


@pytest.fixture
def place(short_folder: Path) -> Place:
    return Place(short_folder)


async def event(client: Client, reason: str) -> dict[str, Any]:
    """The next event whose orders have this reason."""
    with trio.fail_after(20):
        while True:
            data: dict[str, Any] = (await client.read())["data"]
            if [order["reason"] for order in data["decisions"]] == [reason]:
                return data


async def ask(client: Client, command: str, **arguments: Any) -> Any:
    """The "return" of a command; events before it are skipped."""
    answer = await client.raw(request(command, **arguments))
    while "event" in answer:
        answer = await client.read()
    return answer["return"]


async def policy(client: Client, holds: Callable[[Any], bool]) -> dict[str, Any]:
    """The answer to query-policy, as soon as it is as wanted."""
    with trio.fail_after(20):
        while True:
            told: dict[str, Any] = await ask(client, "query-policy")
            if holds(told):
                return told
            await trio.sleep(0.05)


async def until_reason(client: Client, reason: str) -> dict[str, Any]:
    """The answer, as soon as this is the reason of the one VM."""
    return await policy(client, lambda told: [vm["reason"] for vm in told["vms"]] == [reason])


def until_line(log: IO[str], text: str) -> None:
    while text not in (line := log.readline()):
        assert line, "the hub ended"


async def test_off_does_nothing(place: Place) -> None:
    place.host_has(SHORT)
    vm = PolicedVm()
    async with daemons(place.vms, {"web1": vm.behave}):
        with place.hub() as (process, _):
            async with place.client() as client:
                await trio.sleep(2.5)  # more than a tick
                told = await client.execute("query-policy")
                assert (told["mode"], told["configured-mode"], told["vms"]) == ("off", "off", [])
                assert not place.locked(process)
            assert vm.connections == 0
            assert list(place.vms.glob("policy*")) == []
            process.terminate()
            assert process.wait(5) == 0
    assert list(place.run.iterdir()) == []


async def test_dry_run_decides_and_orders_nothing(place: Place) -> None:
    place.configure("dry-run")
    place.host_has(SHORT)
    vm = PolicedVm()
    async with daemons(place.vms, {"web1": vm.behave}):
        with place.hub():
            async with place.client() as client:
                told = await until_reason(client, "reclaim")
    assert told["host"]["short"]
    assert told["vms"][0]["order"] < 4 * GIB
    assert vm.orders == []


async def test_on_takes_memory_while_the_host_is_short_and_gives_it_back(place: Place) -> None:
    vm = PolicedVm()
    async with daemons(place.vms, {"web1": vm.behave}):
        with place.hub() as (process, log):
            async with place.client() as client:
                assert await client.execute("policy-mode", mode="on") == {}
                await until_reason(client, "not-needed")
                assert place.locked(process)
                place.host_has(SHORT)
                taken = await event(client, "reclaim")
                (order,) = taken["decisions"]
                assert taken["short"]
                assert (order["id"], order["from"]) == ("web1", 4 * GIB)
                assert vm.orders[0] == {"value": order["to"], "policy": True}
                assert GIB < order["to"] < 4 * GIB
                place.host_has(WELL)
                (order,) = (await event(client, "regrow"))["decisions"]
                assert order["to"] > order["from"]
                assert await ask(client, "policy-mode", mode="off") == {}
                await policy(client, lambda told: not place.locked(process))
            process.terminate()
            said = log.read()
            assert process.wait(5) == 0
    assert re.search(r"policy: the host is short of memory: .* web1 .* \(reclaim\)", said)
    assert "internal error" not in said
    assert [file.name for file in place.run.iterdir()] == ["policy-memory.json"]


async def test_holds(place: Place) -> None:
    place.configure("on")
    vm = PolicedVm()
    async with daemons(place.vms, {"web1": vm.behave}):
        with place.hub():
            async with place.client() as client:
                await until_reason(client, "not-needed")
                assert await client.execute("policy-hold", id="web1") == {}
                place.host_has(SHORT)
                await until_reason(client, "manual")
                unknown = await client.failure("policy-hold", id="web2")
                assert unknown == ("DeviceNotFound", "Device 'web2' not found")
                assert vm.orders == []
                assert await ask(client, "policy-release", id="web1") == {}
                with trio.fail_after(20):
                    await vm.ordered.wait()


async def test_reload(place: Place) -> None:
    with place.hub() as (process, log):
        async with place.client() as client:
            place.configure("dry-run")
            assert await client.execute("config-reload") == {"changed": ["policy.mode"]}
            assert await client.execute("config-reload") == {"changed": []}
            place.configure("maybe")
            kind, text = await client.failure("config-reload")
            assert kind == "GenericError"
            assert f"{place.config}: line 2" in text
            process.send_signal(signal.SIGHUP)
            until_line(log, "the settings stay as they are")
            assert (await client.execute("query-policy"))["mode"] == "dry-run"
            place.configure("off")
            process.send_signal(signal.SIGHUP)
            await policy(client, lambda told: told["mode"] == "off")
            assert process.poll() is None


async def test_a_second_hub_decides_nothing_and_says_who_does(place: Place) -> None:
    place.configure("on")
    vm = PolicedVm()
    async with daemons(place.vms, {"web1": vm.behave}):
        with place.hub() as (first, _):
            async with place.client() as client:
                await until_reason(client, "not-needed")
            place.run = place.vms.parent / "run2"
            place.run.mkdir()
            with place.hub():
                async with place.client() as client:
                    told = await policy(client, lambda told: bool(told["problems"]))
                    assert (
                        f"another hub (process {first.pid}) decides on this host"
                        in told["problems"][0]
                    )
                    assert told["vms"] == []
                    first.kill()
                    await until_reason(client, "not-needed")


async def test_the_service_manager_is_told(place: Place) -> None:
    """The state when it changes, and a reload's begin and end."""
    place.configure("on")
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        await manager.bind(str(place.notify))

        async def until(text: str) -> str:
            with trio.fail_after(20):
                while text not in (told := (await manager.recv(4096)).decode()):
                    pass
            return told

        with place.hub(NOTIFY_SOCKET=str(place.notify)) as (process, _):
            told = await until("READY=1")
            assert f"STATUS=VMs of {place.vms}; policy on: " in told
            await until("policy on: the host has its reserve of 2.28 GiB available")
            place.host_has(SHORT)
            await until("policy on: the host is short, with less than its reserve of 2.28 GiB")
            process.send_signal(signal.SIGHUP)
            assert "MONOTONIC_USEC=" in await until("RELOADING=1")
            assert await until("READY=1") == "READY=1"
            place.configure("off")
            process.send_signal(signal.SIGHUP)
            assert await until("STATUS=") == f"STATUS=VMs of {place.vms}"


@pytest.mark.parametrize("mode", ["on", "dry-run"])
def test_a_host_that_cannot_be_read_is_a_mistake(place: Place, mode: str) -> None:
    place.configure(mode)
    place.meminfo.write_text("nonsense\n")
    with place.hub() as (process, log):
        (line,) = [line for line in log if line.startswith("vhost-balloon-hub: ")]
        assert process.wait(20) == 2
    assert "OpenFile=" in line
    assert "ProcSubset=all" in line


def test_a_run_folder_in_use_is_a_mistake(place: Place) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(place.run / "control"))
        other.listen()
        with place.hub() as (process, log):
            (line,) = [line for line in log if line.startswith("vhost-balloon-hub: ")]
            assert process.wait(20) == 2
    assert "another process listens on it" in line

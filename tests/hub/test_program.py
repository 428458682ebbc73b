"""The hub as a process with the policy off, in dry-run and on: its socket, signals and files."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.control_client import GIB, Client
from tests.support.fakes.host_vms import daemons
from tests.support.fakes.policed_vm import PolicedVm
from tests.support.restarting.hub_place import (
    SHORT,
    WELL,
    HubPlace,
    ask,
    policy,
    until_line,
    until_reason,
)


@pytest.fixture
def place(short_folder: Path) -> HubPlace:
    return HubPlace(short_folder)


async def event(client: Client, reason: str) -> dict[str, Any]:
    """The next event whose orders have this reason."""
    with trio.fail_after(20):
        while True:
            data: dict[str, Any] = (await client.read())["data"]
            if [order["reason"] for order in data["decisions"]] == [reason]:
                return data


async def test_off_does_nothing(place: HubPlace) -> None:
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


async def test_dry_run_decides_and_orders_nothing(place: HubPlace) -> None:
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


async def test_on_takes_memory_while_the_host_is_short_and_gives_it_back(place: HubPlace) -> None:
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


async def test_holds(place: HubPlace) -> None:
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


async def test_reload(place: HubPlace) -> None:
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


async def test_a_second_hub_decides_nothing_and_says_who_does(place: HubPlace) -> None:
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


async def test_the_service_manager_is_told(place: HubPlace) -> None:
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
            well = "policy on: the host has its reserve of 2.28 GiB available"
            if well not in told:
                await until(well)
            place.host_has(SHORT)
            await until("policy on: the host is short, with less than its reserve of 2.28 GiB")
            process.send_signal(signal.SIGHUP)
            assert "MONOTONIC_USEC=" in await until("RELOADING=1")
            assert await until("READY=1") == "READY=1"
            place.configure("off")
            process.send_signal(signal.SIGHUP)
            assert await until("STATUS=") == f"STATUS=VMs of {place.vms}"


@pytest.mark.parametrize("mode", ["on", "dry-run"])
def test_a_host_that_cannot_be_read_is_a_mistake(place: HubPlace, mode: str) -> None:
    place.configure(mode)
    place.meminfo.write_text("nonsense\n")
    with place.hub() as (process, log):
        (line,) = [line for line in log if line.startswith("vhost-balloon-hub: ")]
        assert process.wait(20) == 2
    assert "OpenFile=" in line
    assert "ProcSubset=all" in line

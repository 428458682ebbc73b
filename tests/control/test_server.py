"""The control socket: negotiation, commands and their errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from protocol.virtio_balloon import STAT_NAMES, StatTag
from tests.support.control_client import (
    GIB,
    Client,
    FakeFrontEnd,
    MemoryListener,
    attach,
)
from vhost_balloon.control.commands import COMMANDS
from vhost_balloon.vm.vm import Vm

UNKNOWN = (1 << 64) - 1
PATH = "/machine/peripheral/web1"
NOT_INTEGER = "Invalid parameter type for 'guest-stats-polling-interval', expected: integer"


@pytest.fixture
def web1(vm: Vm) -> FakeFrontEnd:
    return attach(vm)


# Negotiation


async def test_greeting_comes_first_and_offers_no_capability(server: MemoryListener) -> None:
    greeting = (await server.connect().read())["QMP"]
    assert greeting["capabilities"] == []
    assert greeting["version"]["package"] == "vhost-balloon"
    assert greeting["version"]["qemu"].keys() == {"major", "minor", "micro"}


async def test_commands_wait_for_negotiation(server: MemoryListener) -> None:
    client = server.connect()
    await client.read()
    text = "Expecting capabilities negotiation with 'qmp_capabilities'"
    for command in ("query-version", "nonsense"):
        assert await client.failure(command) == ("CommandNotFound", text)
    assert (await client.raw(b"x\n"))["error"]["class"] == "GenericError"
    assert await client.execute("qmp_capabilities", enable=[]) == {}
    assert await client.execute("query-version")


@pytest.mark.parametrize(
    ("enable", "text"),
    [
        (["oob"], "Capability oob not available"),
        (["fly"], "Parameter 'enable' does not accept value 'fly'"),
        ([1], "Invalid parameter type for 'enable[0]', expected: string"),
        ("oob", "Invalid parameter type for 'enable', expected: array"),
    ],
)
async def test_a_capability_that_is_not_available(
    server: MemoryListener, enable: Any, text: str
) -> None:
    client = server.connect()
    await client.read()
    assert await client.failure("qmp_capabilities", enable=enable) == ("GenericError", text)
    assert (await client.failure("query-version"))[0] == "CommandNotFound"


async def test_negotiation_is_done_once(client: Client) -> None:
    assert await client.failure("qmp_capabilities") == (
        "CommandNotFound",
        "Capabilities negotiation is already complete, command ignored",
    )


# Requests


@pytest.mark.parametrize("value", [0, None, "x", [1, {"a": None}], {"k": "\u00e9"}, 1.5, False])
async def test_id_is_echoed(client: Client, value: Any) -> None:
    for command in ("query-version", "nonsense"):
        reply = await client.raw(json.dumps({"execute": command, "id": value}).encode())
        assert reply["id"] == value
    assert "id" not in await client.raw(b'{"execute":"query-version"}')


async def test_malformed_requests_get_an_error_and_the_client_goes_on(client: Client) -> None:
    for line in (b"nonsense\n", b'{"execute":\n}', b"[" * 101 + b"}", b"[]\n", b"\xff\n"):
        assert (await client.raw(line))["error"]["class"] == "GenericError"
        assert await client.execute("query-version")


async def test_out_of_band_is_refused(client: Client) -> None:
    reply = await client.raw(b'{"exec-oob":"query-version","id":1}')
    text = "QMP input member 'exec-oob' is unexpected"
    assert reply == {"error": {"class": "GenericError", "desc": text}, "id": 1}


async def test_unknown_command(client: Client) -> None:
    text = "The command nonsense has not been found"
    assert await client.failure("nonsense") == ("CommandNotFound", text)


@pytest.mark.parametrize(
    ("command", "arguments", "text"),
    [
        ("query-version", {"x": 1}, "Parameter 'x' is unexpected"),
        ("balloon", {}, "Parameter 'value' is missing"),
        ("balloon", {"value": 5, "x": 1}, "Parameter 'x' is unexpected"),
        ("query-balloon", {"id": 1}, "Invalid parameter type for 'id', expected: string"),
        ("qom-get", {"path": PATH}, "Parameter 'property' is missing"),
        ("qom-set", {"path": PATH, "property": "x"}, "Parameter 'value' is missing"),
    ],
)
async def test_arguments_are_checked(
    client: Client, web1: FakeFrontEnd, command: str, arguments: Any, text: str
) -> None:
    assert await client.failure(command, **arguments) == ("GenericError", text)
    assert web1.targets == []


async def test_query_commands_names_every_command(client: Client) -> None:
    listed = {entry["name"] for entry in await client.execute("query-commands")}
    own = {"qmp_capabilities", "query-commands", "query-qmp-schema", "query-version"}
    assert listed == {*COMMANDS, *own}


# balloon and query-balloon


async def test_balloon_sets_the_target_before_it_returns(
    client: Client, web1: FakeFrontEnd
) -> None:
    assert await client.execute("balloon", value=512 << 20) == {}
    assert await client.execute("balloon", value=(1 << 63) - 1, id="web1") == {}
    assert web1.targets == [512 << 20, (1 << 63) - 1]


@pytest.mark.parametrize("known", [{"pending": True}, {"driver_ready": False}])
async def test_balloon_says_that_a_driver_is_missing(client: Client, vm: Vm, known: Any) -> None:
    attach(vm, **known)
    assert await client.execute("balloon", value=GIB) == {"pending": True}


@pytest.mark.parametrize("value", [0, -1, -(1 << 63)])
async def test_balloon_wants_a_size(client: Client, web1: FakeFrontEnd, value: int) -> None:
    text = "Parameter 'value' expects a size"
    assert await client.failure("balloon", value=value) == ("GenericError", text)
    assert web1.targets == []


@pytest.mark.parametrize("value", [True, 1.5, 1.0, "5", None, [], {}, 1 << 63, 1 << 64])
async def test_balloon_wants_an_integer(client: Client, web1: FakeFrontEnd, value: Any) -> None:
    text = "Invalid parameter type for 'value', expected: integer"
    assert await client.failure("balloon", value=value) == ("GenericError", text)
    assert web1.targets == []


@pytest.mark.parametrize(
    ("command", "arguments"), [("balloon", {"value": 1}), ("query-balloon", {})]
)
async def test_which_vm(client: Client, vm: Vm, command: str, arguments: Any) -> None:
    """Naming the only VM is optional, but commands for another VM are refused."""
    text = "No balloon device has been activated: VM 'web1' has no front end"
    for one in ({}, {"id": "web1"}):
        assert await client.failure(command, **one, **arguments) == ("DeviceNotActive", text)
    web1 = attach(vm)
    for one in ({}, {"id": "web1"}):
        await client.execute(command, **one, **arguments)
    web1.targets.clear()
    for other in ("web2", "WEB1", "", "web1/"):
        unknown = await client.failure(command, id=other, **arguments)
        assert unknown == ("DeviceNotFound", f"Device '{other}' not found")
    assert web1.targets == []


async def test_query_balloon(client: Client, vm: Vm) -> None:
    attach(vm, actual=512 << 20)
    assert await client.execute("query-balloon") == {"actual": 512 << 20}
    attach(vm, actual=None, guest_memory=0)
    assert (await client.failure("query-balloon"))[0] == "DeviceNotActive"


# vm-disconnect


async def test_disconnect_returns_once_the_front_end_has_gone(client: Client, vm: Vm) -> None:
    error = ("DeviceNotActive", "No balloon device has been activated: VM 'web1' has no front end")
    assert await client.failure("vm-disconnect") == error
    assert await client.failure("vm-disconnect", id="web1") == error
    web1 = attach(vm)
    text = "Invalid parameter type for 'id', expected: string"
    assert await client.failure("vm-disconnect", id=1) == ("GenericError", text)
    assert (await client.failure("vm-disconnect", id="web2"))[0] == "DeviceNotFound"
    assert not web1.disconnected.is_set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.execute, "vm-disconnect")
        await web1.disconnected.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        assert not vm.order_answered.is_set()
        web1.gone.set()
    assert vm.order_answered.is_set()


# qom-get and qom-set


async def test_guest_stats_before_the_first_sample(client: Client) -> None:
    """Unknown statistics are not an error, with or without a front end."""
    stats = await client.execute("qom-get", path=PATH, property="guest-stats")
    assert stats == {"last-update": 0, "stats": dict.fromkeys(STAT_NAMES.values(), UNKNOWN)}
    assert len(stats["stats"]) == 16


async def test_guest_stats(client: Client, vm: Vm) -> None:
    values = {StatTag.MEMFREE: 5, StatTag.OOM_KILL: 0}
    attach(vm, stats=values, stats_last_update=1234)
    result = await client.execute("qom-get", path=PATH + "/", property="guest-stats")
    assert result["last-update"] == 1234
    known = {name: value for name, value in result["stats"].items() if value != UNKNOWN}
    assert known == {"stat-free-memory": 5, "stat-oom-kills": 0}


async def test_polling_interval(client: Client, vm: Vm) -> None:
    name = {"path": PATH, "property": "guest-stats-polling-interval"}
    assert await client.execute("qom-get", **name) == 10
    for value in (3, 0, (1 << 32) - 1):
        assert await client.execute("qom-set", **name, value=value) == {}
        assert await client.execute("qom-get", **name) == value
        assert vm.stats_interval == value
    vm.stats_interval = 0.5
    assert await client.execute("qom-get", **name) == 0.5


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-1, "timer value must be greater than zero"),
        (1 << 32, "timer value is too big"),
        (True, NOT_INTEGER),
        (1.5, NOT_INTEGER),
        ("5", NOT_INTEGER),
        (None, NOT_INTEGER),
        ([], NOT_INTEGER),
        (1 << 64, NOT_INTEGER),
    ],
)
async def test_polling_interval_is_checked(client: Client, vm: Vm, value: Any, text: str) -> None:
    name = {"path": PATH, "property": "guest-stats-polling-interval"}
    assert await client.failure("qom-set", **name, value=value) == ("GenericError", text)
    assert vm.stats_interval == 10

"""The control socket: query-vms, statistics on demand, pause and resume, and the schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from protocol.virtio_balloon import STAT_NAMES, Queue, StatTag
from tests.support.control_client import (
    GIB,
    Client,
    FakeFrontEnd,
    MemoryListener,
    attach,
    check,
    schema_of,
)
from vhost_balloon.config.config import parse
from vhost_balloon.control.commands import COMMANDS
from vhost_balloon.control.server import serve_control
from vhost_balloon.errors import CommandError, RingErrorReason
from vhost_balloon.figures.counters import Counters
from vhost_balloon.figures.statistics import HugePages, QueueStatistics, RegionStatistics, VmState
from vhost_balloon.vm.settings import VmSettings, settings_to_json
from vhost_balloon.vm.snapshot import VmStatistics
from vhost_balloon.vm.vm import Vm

UNKNOWN = (1 << 64) - 1


@pytest.fixture
def web1(vm: Vm) -> FakeFrontEnd:
    return attach(vm)


# query-vms


async def test_query_vms_lists_the_vm_attached_or_not(client: Client, vm: Vm) -> None:
    (told,) = await client.execute("query-vms")
    assert (told["id"], told["attached"], told["state"]) == ("web1", False, "disconnected")
    unknown = "front-end-pid target actual held-for resident stats-age stats-taken stats-actual"
    assert not told.keys() & {*unknown.split(), "socket-path"}
    assert told["stats"] == {}
    assert told["freed-bytes"] == 0
    assert not told["held"]
    attach(vm, driver_ready=False, state=VmState.NO_DRIVER)
    (told,) = await client.execute("query-vms")
    assert (told["id"], told["attached"], told["state"]) == ("web1", True, "no-driver")


async def test_a_vm_held_by_a_stuck_process(client: Client, vm: Vm) -> None:
    vm.waits_for_lock = True
    (told,) = await client.execute("query-vms")
    assert (told["attached"], told["state"]) == (False, "stuck")


@pytest.mark.parametrize("state", VmState)
async def test_query_vms_has_the_state(client: Client, vm: Vm, state: VmState) -> None:
    attach(vm, state=state)
    assert (await client.execute("query-vms"))[0]["state"] == state.value


async def test_query_vms_has_the_path_of_the_front_ends_socket(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is absolute, because clients do not run in the daemon's folder."""
    monkeypatch.chdir(tmp_path)
    settings, listener = parse(["--socket-path=run/web3.sock"]), MemoryListener()
    vm = Vm(settings.name, settings.settings, settings.socket_path)
    await nursery.start(serve_control, listener, vm)
    client = listener.connect()
    await client.negotiate()
    (told,) = await client.execute("query-vms")
    assert (told["id"], told["socket-path"]) == ("web3", f"{tmp_path}/run/web3.sock")


def known_vm(vm: Vm) -> FakeFrontEnd:
    """Attach a front end, with a value in every member."""
    vm.counters = Counters(reported_bytes=4096)
    vm.counters.refuse("poison", 8192)
    vm.counters.requests[Queue.INFLATE] = 7
    vm.counters.ring_errors["stats", RingErrorReason.LOOP] += 2
    vm.counters.discard_seconds.observe(0.002)
    queues = (
        QueueStatistics(0, Queue.INFLATE, 64, True, True, None, 7),
        QueueStatistics(2, None, 32, True, False, "loop", 0),
    )
    return attach(
        vm, front_end_pid=42, features=1 << 5 | 1 << 30 | 1 << 32 | 1 << 50, protocol_features=0x9,
        queues=queues, regions=(RegionStatistics(0, GIB, 4096, "tmpfs"),), target=GIB, balloon=0,
        resident=4096, stats={StatTag.MEMFREE: 5}, stats_age=1.5, state=VmState.DONE,
        stats_taken=7.25, stats_actual=GIB, held=True, held_for=41.5,
        pause_reasons=("operator",), huge_pages=HugePages(2, 3, 8192),
        socket_path=Path("/run/web1.sock"), report_rate=5, internal_errors={"events": 1, "log": 0},
    )  # fmt: skip


async def test_query_vms_has_every_known_member(client: Client, vm: Vm) -> None:
    known_vm(vm)
    known = (await client.execute("query-vms"))[0]
    assert known == {
        "id": "web1", "attached": True, "state": "done", "front-end-pid": 42,
        "settings": settings_to_json(VmSettings(offered=0)),
        "socket-path": "/run/web1.sock",
        "features": ["page-reporting", "protocol-features", "version-1", "bit-50"],
        "protocol-features": ["mq", "reply-ack"],
        "queues": [
            {"index": 0, "queue": "inflate", "size": 64, "started": True, "enabled": True,
             "requests": 7},
            {"index": 2, "size": 32, "started": True, "enabled": False, "broken": "loop",
             "requests": 0},
        ],
        "regions": [
            {"guest-address": 0, "size": GIB, "page-size": 4096, "backing": "tmpfs"},
        ],
        "guest-memory": GIB, "target": GIB, "pending": False, "actual": GIB, "balloon": 0,
        "resident": 4096, "driver-ready": True, "queue-map-ambiguous": False,
        "reporting-paused": True, "pause-reasons": ["operator"],
        "stats": {"stat-free-memory": 5}, "stats-age": 1.5, "stats-interval": 0.0,
        "stats-taken": 7.25, "stats-actual": GIB, "held": True, "held-for": 41.5,
        "reported-bytes": 4096, "inflated-bytes": 0, "deflated-bytes": 0, "freed-bytes": 0,
        "huge-pages": {"partial": 2, "whole": 3, "waiting-bytes": 8192}, "huge-pages-freed": 0,
        "refused-bytes": {"poison": 8192}, "requests": {"inflate": 7},
        "ring-errors": {"stats": {"loop": 2}},
        "refused-ranges": {"poison": 1}, "internal-errors": {"events": 1}, "report-rate": 5,
        "discard-seconds": {"counts": [0, 0, 0, 1, 0, 0, 0, 0, 0], "sum": 0.002},
        "front-end-errors": 0, "front-end-stalls": 0, "config-changes": 0,
    }  # fmt: skip


# balloon-stats


async def test_balloon_stats_returns_the_requested_sample(
    client: Client, vm: Vm, web1: FakeFrontEnd
) -> None:
    web1.sample = VmStatistics(
        "web1", True, vm.counters, stats={StatTag.MEMFREE: 5}, stats_last_update=77
    )
    result = await client.execute("balloon-stats")
    assert result.keys() == {"stats", "last-update"}
    assert result["last-update"] == 77
    assert result["stats"].keys() == set(STAT_NAMES.values())
    known = {name: value for name, value in result["stats"].items() if value != UNKNOWN}
    assert known == {"stat-free-memory": 5}


@pytest.mark.parametrize(("arguments", "seconds"), [({}, 3), ({"timeout": 250}, 0.25)])
async def test_a_silent_guest_cannot_hang_a_client(
    client: Client, web1: FakeFrontEnd, arguments: Any, seconds: float,
    autojump_clock: trio.testing.MockClock,
) -> None:  # fmt: skip
    started = trio.current_time()
    error = await client.failure("balloon-stats", **arguments)
    assert error == ("GenericError", f"the guest gave no statistics within {seconds:g} s")
    assert trio.current_time() - started == pytest.approx(seconds)
    assert await client.execute("query-version")


@pytest.mark.parametrize("milliseconds", [0, -1, 60_001])
async def test_the_time_limit_of_balloon_stats_has_a_range(
    client: Client, web1: FakeFrontEnd, milliseconds: int
) -> None:
    text = "Parameter 'timeout' expects 1 to 60000 milliseconds"
    failure = await client.failure("balloon-stats", timeout=milliseconds)
    assert failure == ("GenericError", text)


async def test_balloon_stats_of_a_guest_without_statistics(
    client: Client, web1: FakeFrontEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse() -> None:
        raise CommandError("the guest's driver is not ready, or gives no statistics")

    monkeypatch.setattr(web1, "fresh_stats", refuse)
    assert (await client.failure("balloon-stats", id="web1"))[0] == "GenericError"


async def test_balloon_stats_needs_a_front_end(client: Client) -> None:
    text = "No balloon device has been activated: VM 'web1' has no front end"
    assert await client.failure("balloon-stats") == ("DeviceNotActive", text)
    assert (await client.failure("balloon-stats", id="web1"))[0] == "DeviceNotActive"
    assert (await client.failure("balloon-stats", id="web9"))[0] == "DeviceNotFound"


# balloon-pause and balloon-resume


async def test_pause_and_resume_reach_the_front_end(
    client: Client, vm: Vm, web1: FakeFrontEnd
) -> None:
    assert await client.execute("balloon-pause") == {}
    assert (await client.execute("balloon-pause", id="web1")) == {}
    assert await client.execute("balloon-resume") == {}
    assert web1.pauses == [True, True, False]


async def test_a_vm_without_a_front_end_can_be_paused(client: Client) -> None:
    """The next front end is then paused from its first report."""
    assert await client.execute("balloon-pause") == {}
    (told,) = await client.execute("query-vms")
    assert (told["reporting-paused"], told["pause-reasons"]) == (True, ["operator"])
    assert await client.execute("balloon-resume", id="web1") == {}
    (told,) = await client.execute("query-vms")
    assert (told["reporting-paused"], told["pause-reasons"]) == (False, [])


@pytest.mark.parametrize("command", ["balloon-pause", "balloon-resume"])
async def test_another_vm_is_not_paused(client: Client, command: str) -> None:
    assert await client.failure(command, id="x") == ("DeviceNotFound", "Device 'x' not found")


# query-qmp-schema


async def test_the_schema_defines_every_type_that_it_names(client: Client) -> None:
    schema = await schema_of(client)
    for entity in schema.values():
        named = [entity[key] for key in ("arg-type", "ret-type", "element-type") if key in entity]
        named += [member["type"] for member in entity.get("members", ()) if "type" in member]
        assert set(named) <= schema.keys(), entity
    meta = {schema[kind]["meta-type"] for kind in schema}
    assert meta == {"command", "event", "object", "enum", "array", "builtin"}


async def test_the_schema_has_all_commands_and_their_arguments(client: Client) -> None:
    schema = await schema_of(client)
    commands = {name for name, entity in schema.items() if entity["meta-type"] == "command"}
    assert commands == {entry["name"] for entry in await client.execute("query-commands")}
    for name, command in COMMANDS.items():
        members = schema[schema[name]["arg-type"]]["members"]
        taken = {member["name"]: "default" in member for member in members}
        assert taken == {parameter.name: parameter.optional for parameter in command.parameters}


async def test_replies_and_events_match_the_schema(client: Client, vm: Vm) -> None:
    schema = await schema_of(client)
    front_end = known_vm(vm)
    path = "/machine/peripheral/web1"
    requests: dict[str, dict[str, Any]] = {
        "query-vms": {}, "query-version": {}, "query-commands": {}, "query-qmp-schema": {},
        "query-balloon": {}, "balloon": {"value": GIB, "policy": False, "hold": 5, "id": "web1"},
        "balloon-pause": {},
        "balloon-resume": {}, "qom-get": {"path": path, "property": "guest-stats"},
        "qom-set": {"path": path, "property": "guest-stats-polling-interval", "value": 1},
        "qom-list": {"path": path}, "qom-list-get": {"paths": [path, "/"]}, "query-name": {},
        "query-memory-size-summary": {}, "policy-hold": {"seconds": 5}, "policy-release": {},
        "balloon-request-stats": {},
        "human-monitor-command": {"command-line": "info balloon", "cpu-index": 0},
    }  # fmt: skip
    for command, arguments in requests.items():
        check(schema, schema[command]["arg-type"], arguments)
        check(schema, schema[command]["ret-type"], await client.execute(command, **arguments))
    front_end.sample = front_end.known
    result = await client.execute("balloon-stats")
    check(schema, schema["balloon-stats"]["ret-type"], result)
    vm.actual_changed()
    event = await client.read()
    check(schema, schema[event["event"]]["arg-type"], event["data"])

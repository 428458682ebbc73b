"""The hub's control socket: its commands, their errors, its schema, its event and its clients."""

from __future__ import annotations

import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.support.control_client import GIB, Client, check, schema_of
from tests.support.end_to_end import LogLines
from vhost_balloon.containment import InternalErrors
from vhost_balloon.errors import CommandError, OperatorError
from vhost_balloon.figures.policy_reason import Reason
from vhost_balloon.hub.commands import COMMANDS, Hub
from vhost_balloon.hub.control import MAX_CLIENTS, Control
from vhost_balloon.hub.events import EVENT, MAX_ORDERS
from vhost_balloon.hub.vms import HUB_PLACES
from vhost_balloon.policy.decide import Decision, HostState
from vhost_balloon.policy.inputs import VmFigures
from vhost_balloon.policy.past import Order
from vhost_balloon.policy.release import Released
from vhost_balloon.policy.report import Report, VmReport
from vhost_balloon.policy.settings import Mode
from vhost_balloon.service.listeners import SocketOptions

HOST = HostState(GIB, 16 * GIB, 2 * GIB, 0.05, 0.5, short=True, plenty=False, spare=GIB)


def vm(decision: Decision, target: int = 4 * GIB, **more: Any) -> VmReport:
    return VmReport(VmFigures("1", 4 * GIB, target, target, GIB), decision, **more)


class FakePolicy:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.released = Released()
        self.refusal = ""
        self.vms = {
            "web1": vm(Decision(Reason.RECLAIM, 3 * GIB, age=1.5)),
            "db1": vm(Decision(Reason.MANUAL), held_for=42.0),
        }

    def report(self) -> Report:
        return Report(
            Mode.ON,
            Mode.OFF,
            problems=("a line",),
            host=HOST,
            age=0.5,
            vms=self.vms,
            unanswered={"hung1": "no answer"},
        )

    async def set_mode(self, mode: Mode) -> None:
        self.told.append(mode)

    async def hold(self, name: str, seconds: int | None) -> None:
        self._hear(name, seconds)

    async def release(self, name: str) -> None:
        self._hear(name)

    async def release_all(self) -> Released:
        self._hear("all")
        return self.released

    def _hear(self, *told: object) -> None:
        if self.refusal:
            raise CommandError(self.refusal)
        self.told.append(told)


class FakeConfiguration:
    def __init__(self) -> None:
        self.mistake = ""

    async def reload(self) -> Sequence[str]:
        if self.mistake:
            raise OperatorError(self.mistake)
        return ["policy.mode", "vm.web1"]


@pytest.fixture
async def policy() -> FakePolicy:
    return FakePolicy()


@pytest.fixture
async def configuration() -> FakeConfiguration:
    return FakeConfiguration()


@pytest.fixture
async def errors() -> InternalErrors:
    return InternalErrors(HUB_PLACES)


@pytest.fixture
async def control(
    policy: FakePolicy, configuration: FakeConfiguration, errors: InternalErrors,
    short_folder: Path, stack: ExitStack, nursery: trio.Nursery,
) -> Control:  # fmt: skip
    control = Control(errors)
    control.open(Hub(policy, configuration), short_folder, SocketOptions(0o660), stack)
    nursery.start_soon(control.run)
    return control


@pytest.fixture
async def stack() -> AsyncIterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


Connect = Callable[[], Awaitable[Client]]


@pytest.fixture
async def connect(control: Control, short_folder: Path, stack: ExitStack) -> Connect:
    """Connects a client, which is closed at the end."""

    async def connect() -> Client:
        stream = await trio.open_unix_socket(str(short_folder / "control"))
        stack.callback(stream.socket.close)
        return Client(stream)

    return connect


@pytest.fixture
async def hub_client(connect: Connect) -> Client:
    client = await connect()
    await client.negotiate()
    return client


# Commands


async def test_every_command_is_named_and_described(hub_client: Client) -> None:
    listed = {entry["name"] for entry in await hub_client.execute("query-commands")}
    own = {"qmp_capabilities", "query-commands", "query-qmp-schema", "query-version"}
    assert listed == {*COMMANDS, *own}
    schema = await schema_of(hub_client)
    assert {name for name, of in schema.items() if of["meta-type"] == "command"} == listed
    assert schema[EVENT]["meta-type"] == "event"
    members = schema["q_obj_policy-mode-arg"]["members"]
    assert members == [{"name": "mode", "type": "PolicyMode"}]


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("query-version", {}),
        ("query-policy", {}),
        ("policy-mode", {"mode": "dry-run"}),
        ("policy-hold", {"id": "web1"}),
        ("policy-release", {"id": "web1"}),
        ("policy-release", {}),
        ("config-reload", {}),
    ],
)
async def test_replies_are_as_the_schema_says(
    hub_client: Client, command: str, arguments: Any
) -> None:
    schema = await schema_of(hub_client)
    reply = await hub_client.execute(command, **arguments)
    check(schema, schema[command]["ret-type"], reply)


async def test_query_policy(hub_client: Client) -> None:
    told = await hub_client.execute("query-policy")
    assert (told["mode"], told["configured-mode"]) == ("on", "off")
    assert told["host"]["reserve"] == 2 * GIB
    db1, hung1, web1 = told["vms"]
    assert hung1.pop("explanation").startswith("hung1 is left alone: its daemon gives the policy ")
    assert hung1 == {"id": "hung1", "reason": "stale", "detail": "no answer"}
    assert (web1["id"], web1["reason"], web1["order"]) == ("web1", "reclaim", 3 * GIB)
    assert (db1["id"], db1["reason"], db1["held-for"]) == ("db1", "manual", 42.0)


async def test_orders_reach_the_policy(hub_client: Client, policy: FakePolicy) -> None:
    for mode in ("on", "off", "dry-run"):
        assert await hub_client.execute("policy-mode", mode=mode) == {}
    assert policy.told == [Mode.ON, Mode.OFF, Mode.DRY_RUN]
    policy.told.clear()
    assert await hub_client.execute("policy-hold", id="web1") == {}
    assert await hub_client.execute("policy-hold", id="web1", seconds=60) == {}
    assert await hub_client.execute("policy-release", id="web1") == {}
    assert await hub_client.execute("policy-release") == {"left": []}
    policy.released = Released(["web1"], {"web2": "no answer"})
    reply = await hub_client.execute("policy-release")
    assert reply == {"left": ["web1"], "failed": {"web2": "no answer"}}
    schema = await schema_of(hub_client)
    check(schema, schema["policy-release"]["ret-type"], reply)
    assert policy.told == [("web1", None), ("web1", 60), ("web1",), ("all",), ("all",)]


@pytest.mark.parametrize(
    ("command", "arguments", "text"),
    [
        ("policy-mode", {}, "Parameter 'mode' is missing"),
        ("policy-mode", {"mode": "maybe"}, "Parameter 'mode' does not accept value 'maybe'"),
        ("policy-mode", {"mode": True}, "Invalid parameter type for 'mode', expected: string"),
        ("policy-hold", {}, "Parameter 'id' is missing"),
        ("policy-hold", {"id": "a", "seconds": 1.5},
         "Invalid parameter type for 'seconds', expected: integer"),
        ("policy-release", {"id": None}, "Invalid parameter type for 'id', expected: string"),
        ("query-policy", {"id": "web1"}, "Parameter 'id' is unexpected"),
    ],
)  # fmt: skip
async def test_arguments_are_checked(
    hub_client: Client, policy: FakePolicy, command: str, arguments: Any, text: str
) -> None:
    assert await hub_client.failure(command, **arguments) == ("GenericError", text)
    assert policy.told == []


async def test_a_vm_that_refuses_is_an_error(hub_client: Client, policy: FakePolicy) -> None:
    policy.refusal = "VM 'web1' does not answer"
    for command in ("policy-hold", "policy-release"):
        failure = await hub_client.failure(command, id="web1")
        assert failure == ("GenericError", policy.refusal)


async def test_reload(hub_client: Client, configuration: FakeConfiguration) -> None:
    assert await hub_client.execute("config-reload") == {"changed": ["policy.mode", "vm.web1"]}
    configuration.mistake = "hub.toml, line 3: unknown key 'reserv'"
    failure = await hub_client.failure("config-reload")
    assert failure == ("GenericError", configuration.mistake)


# The event


async def test_orders_are_an_event(hub_client: Client, control: Control) -> None:
    control.announce(HOST, [Order("web1", Reason.RECLAIM, 4 * GIB, 3 * GIB)])
    event = await hub_client.read()
    assert event["event"] == EVENT
    order = {"id": "web1", "reason": "reclaim", "from": 4 * GIB, "to": 3 * GIB}
    assert event["data"] == {"decisions": [order], "short": True, "k": 0.5}
    schema = await schema_of(hub_client)
    check(schema, schema[EVENT]["arg-type"], event["data"])


async def test_an_event_names_the_largest_changes(hub_client: Client, control: Control) -> None:
    control.announce(
        HOST,
        [Order(f"vm{n:03}", Reason.REGROW, GIB, GIB + n) for n in range(1, 199)]
        + [Order("vm199", Reason.RECLAIM, GIB, 0)],
    )
    event = (await hub_client.read())["data"]
    assert len(event["decisions"]) == MAX_ORDERS
    assert event["left-out"] == 199 - MAX_ORDERS
    assert event["decisions"][0]["id"] == "vm199"
    assert event["decisions"][-1]["id"] == "vm100"
    schema = await schema_of(hub_client)
    check(schema, schema[EVENT]["arg-type"], event)


async def test_orders_without_a_socket_are_announced_to_nobody(errors: InternalErrors) -> None:
    control = Control(errors)
    control.announce(HOST, [Order("web1", Reason.RECLAIM, 4 * GIB, 3 * GIB)])
    await control.run()  # returns at once
    assert not any(errors.counts.values())


# The socket


async def test_who_may_connect(control: Control, short_folder: Path) -> None:
    assert stat.S_IMODE((short_folder / "control").stat().st_mode) == 0o660


async def test_a_stale_socket_is_replaced_and_one_in_use_is_a_mistake(
    short_folder: Path, errors: InternalErrors
) -> None:
    path = short_folder / "control"
    hub = Hub(FakePolicy(), FakeConfiguration())
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with ExitStack() as stack:
        Control(errors).open(hub, short_folder, SocketOptions(), stack)
        with pytest.raises(OperatorError, match="in use"):
            Control(errors).open(hub, short_folder, SocketOptions(), stack)
    assert not path.exists()


async def test_a_crowd_of_clients_is_limited(connect: Connect, log_lines: LogLines) -> None:
    clients = [await connect() for _ in range(MAX_CLIENTS)]
    for client in clients:
        await client.negotiate()
    refused = await connect()
    assert await refused.read_to_end() == []
    assert len(log_lines.having(f"more than {MAX_CLIENTS} clients")) == 1
    await clients.pop().stream.aclose()
    await trio.testing.wait_all_tasks_blocked(0.01)
    late = await connect()
    await late.negotiate()
    assert await late.execute("query-policy")


async def test_a_bug_ends_only_its_client(
    hub_client: Client, policy: FakePolicy, errors: InternalErrors, connect: Connect,
    log_lines: LogLines,
) -> None:  # fmt: skip
    policy.vms = {"web1": vm(Decision(Reason.RECLAIM, age=float("nan")))}
    await hub_client.stream.send_all(b'{"execute": "query-policy"}\n')
    assert await hub_client.read_to_end() == []
    await trio.testing.wait_all_tasks_blocked()
    assert errors.counts["control-client"] == 1
    assert log_lines.having("internal error in control-client")
    other = await connect()
    await other.negotiate()
    assert await other.execute("query-version")

"""Real guests: QEMU's own Python client on the control socket."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from qemu.qmp import ExecuteError, QMPClient

from tests.rig.memory import GiB, MiB
from tests.support.vms.guests import Attached, attached

pytestmark = pytest.mark.guest

SECONDS = 60.0


@pytest.fixture(scope="module")
def both() -> Iterator[Attached]:
    """One guest for all tests, which leave it with an empty balloon."""
    with attached("--stats-interval=1") as one:
        yield one


def drive(both: Attached, act: Callable[[QMPClient], Awaitable[None]]) -> None:
    """Connect and negotiate as qmp-shell does, act, and part in peace."""

    async def session() -> None:
        client = QMPClient("vhost-balloon")
        await client.connect(str(both.daemon.control))
        try:
            await asyncio.wait_for(act(client), SECONDS)
        finally:
            await client.disconnect()

    asyncio.run(session())


async def vm(client: QMPClient) -> dict[str, Any]:
    """The one element of query-vms."""
    found: Any = await client.execute("query-vms")
    (one,) = found
    assert isinstance(one, dict)
    return one


async def set_target(client: QMPClient, size: int) -> None:
    """Set a target and wait for the event that says it is reached."""
    with client.listener("BALLOON_CHANGE") as listener:
        assert await client.execute("balloon", {"value": size}) == {}
        async for event in listener:
            data: Any = event["data"]
            assert data.keys() == {"actual", "id"}
            if data["actual"] == size:
                return


def test_it_negotiates_and_finds_the_commands(both: Attached) -> None:
    async def act(client: QMPClient) -> None:
        assert client.greeting is not None
        assert client.greeting.QMP.version["package"] == "vhost-balloon"
        commands: Any = await client.execute("query-commands")
        names = {command["name"] for command in commands}
        assert {"balloon", "query-balloon", "query-vms", "balloon-stats"} <= names
        schema: Any = await client.execute("query-qmp-schema")
        assert names <= {entity["name"] for entity in schema}

    drive(both, act)


def test_targets_and_their_events(both: Attached) -> None:
    async def act(client: QMPClient) -> None:
        await set_target(client, 640 * MiB)
        assert await client.execute("query-balloon") == {"actual": 640 * MiB}
        assert (await vm(client))["state"] == "done"
        await set_target(client, GiB)

    drive(both, act)


def test_guest_statistics(both: Attached) -> None:
    async def act(client: QMPClient) -> None:
        path = f"/machine/peripheral/{(await vm(client))['id']}"
        asked = int(time.time())
        fresh: Any = await client.execute("balloon-stats", {"timeout": 10_000})
        assert fresh["last-update"] >= asked
        known: Any = await client.execute("qom-get", {"path": path, "property": "guest-stats"})
        assert known["last-update"] >= fresh["last-update"]
        assert known["stats"]["stat-total-memory"] == both.guest.meminfo()["MemTotal"]
        interval = {"path": path, "property": "guest-stats-polling-interval"}
        assert await client.execute("qom-set", interval | {"value": 2}) == {}
        assert await client.execute("qom-get", interval) == 2

    drive(both, act)


def test_a_monitoring_script(both: Attached) -> None:
    """Requests over several lines, as in QEMU's virtio-balloon-stats.rst, from one who hangs up."""
    property_ = f'"path": "machine/peripheral/{both.vm()["id"]}", "property": "guest-stats'
    requests = f"""
        {{ "execute": "qmp_capabilities" }}
        {{ "execute": "qom-set",
             "arguments": {{ {property_}-polling-interval", "value": 1 }} }}
        {{ "execute": "qom-get",
             "arguments": {{ {property_}" }} }}
    """
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(both.daemon.control))
        client.sendall(requests.replace("\n", "\r\n").encode())
        client.shutdown(socket.SHUT_WR)
        with client.makefile() as answers:
            messages = [json.loads(line) for line in answers]
    assert [next(iter(message)) for message in messages] == ["QMP", "return", "return", "return"]
    assert messages[-1]["return"]["stats"]["stat-total-memory"] == both.guest.meminfo()["MemTotal"]


def test_pause_and_resume(both: Attached) -> None:
    async def act(client: QMPClient) -> None:
        assert await client.execute("balloon-pause") == {}
        assert (await vm(client))["pause-reasons"] == ["operator"]
        assert await client.execute("balloon-resume") == {}
        assert (await vm(client))["pause-reasons"] == []

    drive(both, act)


@pytest.mark.parametrize(
    ("command", "arguments", "error_class"),
    [
        ("nonsense", {}, "CommandNotFound"),
        ("qmp_capabilities", {}, "CommandNotFound"),
        ("balloon", {"value": 0}, "GenericError"),
        ("balloon", {"value": "1G"}, "GenericError"),
        ("balloon", {}, "GenericError"),
        ("balloon", {"value": GiB, "id": "x"}, "DeviceNotFound"),
        ("query-balloon", {"id": "absent"}, "DeviceNotFound"),
        ("qom-get", {"path": "/machine", "property": "x"}, "GenericError"),
        ("qom-get", {"path": "/machine/x", "property": "x"}, "DeviceNotFound"),
        ("balloon-stats", {"timeout": 0}, "GenericError"),
    ],
)
def test_errors_have_qmps_classes(
    both: Attached, command: str, arguments: dict[str, Any], error_class: str
) -> None:
    async def act(client: QMPClient) -> None:
        with pytest.raises(ExecuteError) as caught:
            await client.execute(command, arguments)
        assert caught.value.error_class == error_class
        assert await client.execute("query-version")  # and the connection goes on

    drive(both, act)


def test_a_vm_without_a_front_end_is_not_active(both: Attached) -> None:
    """Last: the guest is gone then."""
    both.guest.kill()

    async def act(client: QMPClient) -> None:
        while (await vm(client))["attached"]:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.05)
        with pytest.raises(ExecuteError) as caught:
            await client.execute("query-balloon")
        assert caught.value.error_class == "DeviceNotActive"

    drive(both, act)

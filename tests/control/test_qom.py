"""qom-get, qom-set, qom-list and the human monitor. test_as_qemu.py compares them with QEMU."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from protocol.virtio_balloon import BalloonFeature
from tests.support.control_client import Client, FakeFrontEnd, MemoryListener, attach
from vhost_balloon.control.objects import find, tree
from vhost_balloon.control.server import serve_control
from vhost_balloon.vm.settings import VmSettings
from vhost_balloon.vm.vm import Vm

DEVICE = "/machine/peripheral/web1"
BACKEND = f"{DEVICE}/virtio-backend"
MIB = 1 << 20

FOUND = {
    DEVICE: (DEVICE, f"{DEVICE}/", f"/{DEVICE}", "/machine//peripheral///web1//", DEVICE[1:],
             "peripheral/web1", "web1", "web1/"),
    BACKEND: (BACKEND, BACKEND[1:], "web1/virtio-backend", "web1//virtio-backend",
              "virtio-backend", "virtio-backend/"),
    "/machine/peripheral": ("/machine/peripheral", "peripheral", "machine/peripheral"),
    "/machine/peripheral-anon": ("/machine/peripheral-anon", "peripheral-anon"),
    "/machine": ("/machine", "machine", "/machine/"),
    "/": ("/", "//"),
}  # fmt: skip


@pytest.mark.parametrize(("node", "paths"), FOUND.items())
def test_paths(node: str, paths: tuple[str, ...]) -> None:
    for path in paths:
        assert [found.path for found in find(tree("web1"), path)] == [node]


@pytest.mark.parametrize(
    "path",
    ["/machine/peripheral/web9", "WEB1", "/web1", "/machine/web1", f"{DEVICE}/nope", "web1/..",
     "./web1", " web1", f"{DEVICE}/guest-stats", f"{DEVICE}/type", "x" * 60_000],
)  # fmt: skip
async def test_a_path_to_nothing(client: Client, path: str) -> None:
    error = ("DeviceNotFound", f"Device '{path}' not found")
    assert await client.failure("qom-get", path=path, property="guest-stats") == error
    assert await client.failure("qom-set", path=path, property="x", value=1) == error
    assert await client.failure("qom-list", path=path) == error
    assert await client.failure("qom-list-get", paths=[DEVICE, path]) == error


async def test_an_ambiguous_path(client: Client) -> None:
    """The empty path is one, because it fits every object."""
    error = ("DeviceNotFound", "Device '' not found")
    assert await client.failure("qom-get", path="", property="type") == error
    assert await client.failure("qom-set", path="", property="type", value=1) == error
    assert await client.failure("qom-list", path="") == ("GenericError", "Path '' is ambiguous")


@pytest.mark.parametrize(
    "name", ["machine", "peripheral", "virtio-backend", "type", "a.b", "guest-stats"]
)
async def test_a_vm_may_be_called_like_an_object(nursery: trio.Nursery, name: str) -> None:
    listener = MemoryListener()
    await nursery.start(serve_control, listener, Vm(name))
    client = listener.connect()
    await client.negotiate()
    for path in (f"/machine/peripheral/{name}", f"peripheral/{name}", f"{name}/virtio-backend"):
        assert (await client.execute("qom-get", path=path, property="guest-stats"))["stats"]
    if name in ("machine", "peripheral", "virtio-backend"):
        assert (await client.failure("qom-list", path=name))[1] == f"Path '{name}' is ambiguous"
    else:
        assert await client.execute("qom-get", path=name, property="type") == "virtio-balloon-pci"
    node = {"path": "/machine/peripheral", "property": "type"}
    assert await client.execute("qom-get", **node) == "container"


async def test_a_walk_through_the_tree_finds_the_balloon(client: Client) -> None:
    """As libvirt does: it looks for the type of a child."""
    path = ""
    for name in ("machine", "peripheral", "web1", "virtio-backend"):
        entries = await client.execute("qom-list", path=path or "/")
        (entry,) = (entry for entry in entries if entry["name"] == name)
        assert entry["type"].startswith("child<")
        child = await client.execute("qom-get", path=path or "/", property=name)
        path = f"{path}/{name}"
        assert child == path
        kind = await client.execute("qom-get", path=path, property="type")
        assert entry["type"] == f"child<{kind}>"
    assert kind == "virtio-balloon-device"


async def test_both_objects_of_the_device_have_its_properties(client: Client, vm: Vm) -> None:
    vm.settings = VmSettings(offered=int(BalloonFeature.PAGE_REPORTING))
    nodes = await client.execute("qom-list-get", paths=[DEVICE, "virtio-backend"])
    for node, path in zip(nodes, (DEVICE, BACKEND), strict=True):
        listed = await client.execute("qom-list", path=path)
        assert [{k: entry[k] for k in ("name", "type")} for entry in node["properties"]] == listed
        values = {entry["name"]: entry["value"] for entry in node["properties"]}
        for name, value in values.items():
            assert await client.execute("qom-get", path=path, property=name) == value
        assert values["free-page-reporting"] is True
        assert (
            values["deflate-on-oom"] is values["free-page-hint"] is values["page-poison"] is False
        )
        assert values["guest-stats-polling-interval"] == 10
        name = {"path": path, "property": "guest-stats-polling-interval"}
        assert await client.execute("qom-set", **name, value=len(path)) == {}
        assert vm.stats_interval == len(path)
        vm.stats_interval = 10


@pytest.mark.parametrize(
    ("paths", "text"),
    [
        ("web1", "Invalid parameter type for 'paths', expected: array"),
        (["web1", 5], "Invalid parameter type for 'paths[1]', expected: string"),
        ([""], "Path '' is ambiguous"),
    ],
)
async def test_qom_list_get_checks_its_paths(client: Client, paths: Any, text: str) -> None:
    assert await client.failure("qom-list-get", paths=paths) == ("GenericError", text)
    assert await client.execute("qom-list-get", paths=[]) == []


async def test_unknown_and_read_only_properties(client: Client) -> None:
    for path, kind in (
        (DEVICE, "virtio-balloon-pci"),
        (BACKEND, "virtio-balloon-device"),
        ("/machine/peripheral", "container"),
    ):
        error = ("GenericError", f"Property '{kind}.nope' not found")
        assert await client.failure("qom-get", path=path, property="nope") == error
        assert await client.failure("qom-set", path=path, property="nope", value=1) == error
        error = ("GenericError", f"Property '{kind}.type' is not writable")
        assert await client.failure("qom-set", path=path, property="type", value=1) == error
    failure = await client.failure("qom-set", path=DEVICE, property="page-poison", value=True)
    assert failure[1].endswith(".page-poison' is not writable")


# Of the VM


async def test_query_name(client: Client) -> None:
    assert await client.execute("query-name") == {"name": "web1"}


async def test_query_memory_size_summary(client: Client, vm: Vm) -> None:
    """Scripts that set targets by themselves take the largest one from it."""
    command = "query-memory-size-summary"
    assert (await client.failure(command))[0] == "DeviceNotActive"
    attach(vm, guest_memory=0, actual=None)
    assert (await client.failure(command))[0] == "DeviceNotActive"
    attach(vm, guest_memory=512 * MIB, actual=5)
    assert await client.execute(command) == {"base-memory": 512 * MIB}


@pytest.mark.parametrize("command", ["quit", "query-status", "stop", "system_reset", "device_del"])
async def test_what_is_qemus_alone(client: Client, command: str) -> None:
    """The daemon does not know whether the VM runs, and does not end it."""
    text = f"The command {command} has not been found"
    assert await client.failure(command) == ("CommandNotFound", text)


# The human monitor


async def human(client: Client, line: str) -> str:
    answer: str = await client.execute("human-monitor-command", **{"command-line": line})
    return answer


@pytest.mark.parametrize(
    ("line", "mebibytes"),
    [("balloon 512", 512), (" balloon\t0x200 ", 512), ("balloon 01000", 512), ("balloon +1", 1)],
)
async def test_balloon_in_mebibytes(client: Client, vm: Vm, line: str, mebibytes: int) -> None:
    front_end = attach(vm)
    assert await human(client, line) == ""
    assert front_end.targets == [mebibytes * MIB]


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("balloon", "unexpected end of expression"),
        ("balloon x", "invalid char 'x' in expression"),
        ("balloon -5", "enter a positive value"),
        ("balloon 1G", "balloon: extraneous characters at the end of line"),
        ("balloon 1.5", "balloon: extraneous characters at the end of line"),
        ("balloon 256 5", "balloon: extraneous characters at the end of line"),
        ("balloon 0", "Error: Parameter 'value' expects a size"),
        ("balloon 8796093022208", "Error: Parameter 'value' expects a size"),
        ("balloon " + "9" * 50_000, "balloon: extraneous characters at the end of line"),
        ("info balloon x", "balloon: extraneous characters at the end of line"),
        ("info  status", "unknown command: 'info  status'"),
        ("quit", "unknown command: 'quit'"),
    ],
)
async def test_mistakes_to_the_human_monitor(
    client: Client, vm: Vm, line: str, answer: str
) -> None:
    front_end: FakeFrontEnd = attach(vm)
    assert (await human(client, line)).split("\r\n")[0] == answer
    assert front_end.targets == []


async def test_info_balloon(client: Client, vm: Vm) -> None:
    for line in ("info balloon", "balloon 512"):
        text = await human(client, line)
        assert text.startswith("Error: No balloon device has been activated")
    attach(vm, actual=512 * MIB + 5)
    assert await human(client, "info balloon") == "balloon: actual=512\r\n"


async def test_the_shells_completion(client: Client) -> None:
    """qmp-shell -H reads the commands from these, a name in the first and the second word."""
    names = {line.split()[0] for line in (await human(client, "help")).splitlines()}
    assert names == {"balloon", "help|?", "info"}
    assert [line.split()[1] for line in (await human(client, "info")).splitlines()] == ["balloon"]
    assert await human(client, "help nope") == "unknown command: 'nope'\r\n"
    assert await human(client, "") == ""


async def test_arguments_of_the_human_monitor(client: Client) -> None:
    command = "human-monitor-command"
    text = "Parameter 'command-line' is missing"
    assert await client.failure(command) == ("GenericError", text)
    text = "Invalid parameter type for 'command-line', expected: string"
    assert await client.failure(command, **{"command-line": 5}) == ("GenericError", text)
    assert await client.execute(command, **{"command-line": "", "cpu-index": 0}) == ""

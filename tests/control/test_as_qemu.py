"""The control socket beside QEMU's own: the same input, the same answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.rig.provisioning.packages import QEMU
from tests.support.control_client import Client, MemoryListener, attach, request
from tests.support.qmp import inputs
from tests.support.qmp.real_qemu import MEMORY_MIB, comparable, converse, stopped_qemu
from vhost_balloon.control.server import serve_control
from vhost_balloon.vm.vm import Vm

pytestmark = pytest.mark.rig(QEMU)

MIB = 1 << 20
MEMORY = MEMORY_MIB * MIB
DEVICE = "/machine/peripheral/web1"
BACKEND = f"{DEVICE}/virtio-backend"
UNLIKE_QEMU = {
    "guest-stats-polling-interval",
    "free-page-reporting",
    "deflate-on-oom",
    "page-poison",
}
"""Properties with other defaults than QEMU's."""


@pytest.fixture(scope="module")
def qemu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with stopped_qemu(tmp_path_factory.mktemp("qemu"), "web1") as path:
        yield path


Ask = Callable[[bytes], Awaitable[tuple[list[Any], list[Any]]]]


@pytest.fixture
def ask(qemu: Path, server: MemoryListener, vm: Vm) -> Ask:
    """Send the same to both; return QEMU's answers and the daemon's."""
    attach(vm, actual=MEMORY, guest_memory=MEMORY)

    async def both(data: bytes) -> tuple[list[Any], list[Any]]:
        theirs = await converse(await connect(qemu), data)
        return theirs, await converse(server.connect(), data)

    return both


async def connect(path: Path) -> Client:
    return Client(await trio.open_unix_socket(str(path)))


# Input


@pytest.mark.parametrize("data", inputs.SPREAD + inputs.MISTAKES + inputs.SWALLOWING)
async def test_input(ask: Ask, data: bytes) -> None:
    theirs, ours = await ask(data + inputs.PROBE + b"\n\xff")
    assert ours == theirs
    answered = any(answer.get("id") == "probe" for answer in ours)
    assert answered == (data not in inputs.SWALLOWING)


@pytest.mark.parametrize("text", inputs.STRINGS + inputs.NUMBERS)
async def test_ids(ask: Ask, text: bytes) -> None:
    theirs, ours = await ask(inputs.with_id(text) + inputs.PROBE + b"\xff")
    assert ours == theirs


@pytest.mark.parametrize("data", inputs.REQUESTS)
async def test_requests(ask: Ask, data: bytes) -> None:
    theirs, ours = await ask(data)
    assert ours == theirs


async def test_nesting(ask: Ask) -> None:
    """QEMU's limit is 1024 brackets, the daemon's 100; both go on in the same way."""
    for end in (b"]" * 2000, b"}", b"\xff", b"@\n"):
        theirs, ours = await ask(b"[" * 2000 + end + inputs.PROBE)
        assert ours == theirs
        assert ours[0]["error"]["desc"] == "JSON nesting depth limit exceeded"
        assert ours[1]["id"] == "probe"


@pytest.mark.parametrize("rest", [b'{"execute":"query-name"', b"5", b"garbage", b'"', b"@", b""])
async def test_the_end_of_input(qemu: Path, server: MemoryListener, vm: Vm, rest: bytes) -> None:
    """Nothing is made of a request that is not complete."""
    found = []
    for client in (await connect(qemu), server.connect()):
        await client.negotiate()
        await client.stream.send_all(inputs.PROBE * 3 + rest)
        await client.stream.send_eof()
        found.append([comparable(answer) for answer in await client.read_to_end()])
        await client.stream.aclose()
    assert found[0] == found[1]
    assert len(found[1]) == 3 + (rest == b"@")


# Objects

PATHS = (
    *(DEVICE, f"{DEVICE}/", f"/{DEVICE}", "/machine//peripheral///web1//", f"{BACKEND}/"),
    *(DEVICE[1:], f"{DEVICE[1:]}/", BACKEND[1:], "peripheral/web1", "web1", "web1/"),
    *("web1/virtio-backend", "web1//virtio-backend", "virtio-backend", "virtio-backend/"),
    *("", "/", "//", "/machine", "machine", "/machine/", "/machine/peripheral", "peripheral"),
    *("peripheral-anon", "/web1", "//web1", "/machine/web1", f"{DEVICE}/nope", f"{DEVICE}/type"),
    *("/machine/peripheral/web2", "web2", "WEB1", "web1/..", "./web1", " web1", "x", "/x", "."),
    *(f"{DEVICE}/guest-stats", "peripheral/virtio-backend", "web1/web1", "nope/", "\u00e9\u0000"),
)


@pytest.mark.parametrize("path", PATHS)
async def test_paths(ask: Ask, path: str) -> None:
    data = b"".join(
        request("qom-get", path=path, property=name) for name in ("type", "nope", "guest-stats")
    )
    data += request("qom-set", path=path, property="nope", value=1)
    theirs, ours = await ask(data)
    assert [answer.get("error") for answer in ours] == [answer.get("error") for answer in theirs]
    if path.strip("/") not in ("machine", ""):
        assert ours[0] == theirs[0]


@pytest.mark.parametrize("path", PATHS)
async def test_lists(ask: Ask, path: str) -> None:
    """The daemon's tree is a part of QEMU's."""
    ((theirs,), (ours,)) = await ask(request("qom-list", path=path))
    assert ours.get("error") == theirs.get("error")
    for entry in ours.get("return", ()):
        entry["type"] = entry["type"].replace("<machine>", "<pc-q35-11.1-machine>")
        assert entry["name"] in {found["name"] for found in theirs["return"]}
        if entry["name"] != "machine":
            assert entry in theirs["return"]


async def test_lists_of_values(ask: Ask) -> None:
    for paths in ([], ["nope"], [""], [5], ["web1", "nope"], "web1", [DEVICE, "virtio-backend"]):
        ((theirs,), (ours,)) = await ask(request("qom-list-get", paths=paths))
        assert ours.get("error") == theirs.get("error")
        for node, same in zip(ours.get("return", ()), theirs.get("return", ()), strict=True):
            values = {entry["name"]: entry["value"] for entry in same["properties"]}
            for entry in node["properties"]:
                if entry["name"] not in UNLIKE_QEMU:
                    assert values[entry["name"]] == entry["value"]


@pytest.mark.parametrize("path", ["web1", "web1/virtio-backend", "peripheral"])
@pytest.mark.parametrize(
    "name",
    ["type", "guest-stats", "guest-stats-polling-interval", "virtio-backend", "", "guest-stats ",
     "guest-stats.stats", "actual", "num_pages", "web1", "page-poison", "free-page-hint"],
)  # fmt: skip
async def test_properties(ask: Ask, vm: Vm, path: str, name: str) -> None:
    vm.stats_interval = 0
    theirs, ours = await ask(request("qom-get", path=path, property=name))
    if name not in ("page-poison", "free-page-hint") or path == "peripheral":
        assert ours == theirs
    else:
        assert isinstance(ours[0]["return"], bool)


@pytest.mark.parametrize("path", ["web1", "web1/virtio-backend"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("guest-stats-polling-interval", value) for value in
          ("2", "2e0", "2.0", "2.5", "1e20", '"2"', "0", "-0", "-0.0", "4294967295", "4294967296",
           "18446744073709551615", "-1", "[]", "null", "true")),
        *(("type", "1"), ("nope", "1"), ("virtio-backend", '"x"')),
    ],
)  # fmt: skip
async def test_setting_properties(ask: Ask, path: str, name: str, value: str) -> None:
    arguments = f'"path":"{path}","property":"{name}","value":{value}'
    theirs, ours = await ask(b'{"execute":"qom-set","arguments":{%s}}' % arguments.encode())
    assert ours == theirs


@pytest.mark.parametrize("name", ["machine", "peripheral", "virtio-backend", "a.b"])
async def test_an_id_that_is_an_objects_name(
    nursery: trio.Nursery, tmp_path: Path, name: str
) -> None:
    vm, listener = Vm(name), MemoryListener()
    attach(vm)
    await nursery.start(serve_control, listener, vm)
    paths = (name, f"peripheral/{name}", f"/machine/peripheral/{name}", f"{name}/virtio-backend",
             f"{name}/{name}", "virtio-backend", "machine/peripheral", "peripheral")  # fmt: skip
    data = b"".join(
        request("qom-get", path=path, property="type") + request("qom-list", path=path)
        for path in paths
    )
    with stopped_qemu(tmp_path, name) as path:
        theirs = await converse(await connect(path), data)
    ours = await converse(listener.connect(), data)
    assert [answer.get("error") for answer in ours] == [answer.get("error") for answer in theirs]
    assert ours[4] == {"return": "virtio-balloon-pci"}


# Values, and the human monitor


@pytest.mark.parametrize(
    "value",
    ["1e9", "1073741824.0", "2.68435456e8", "268435456.5", '"268435456"', "true", "-1", "0", "-0",
     "-0.0", "9223372036854775807", "9223372036854775808", "18446744073709551615", "1", "4096",
     "null", "[]", "{}"],
)  # fmt: skip
async def test_sizes(ask: Ask, value: str) -> None:
    theirs, ours = await ask(b'{"execute":"balloon","arguments":{"value":%s}}' % value.encode())
    assert ours == theirs


@pytest.mark.parametrize(
    "line",
    ["info balloon", " info  balloon \n", "balloon 256", "balloon\t256 ", "balloon 0x100",
     "balloon 0400", "balloon +5", "balloon 0", "balloon -0", "balloon -5", "balloon",
     "balloon  ", "balloon x", "balloon 1G", "balloon 256M", "balloon 1.5", "balloon 256 5",
     "balloon 08", "balloon 0x", "balloon 99999999999999", "balloon 8796093022207",
     "balloon 8796093022208", "balloon 256\ninfo balloon", 'balloon "256"', "balloon value=256",
     "balloon 1,2", "info balloon x", "info nope", "info  nope x", "nope", "infox", "Info balloon",
     "help balloon", "help info balloon", "help nope", "", " ", "? balloon"],
)  # fmt: skip
async def test_the_human_monitor(ask: Ask, line: str) -> None:
    data = request("human-monitor-command", **{"command-line": line})
    theirs, ours = await ask(request("balloon", value=MEMORY) + data)
    assert ours == theirs


async def test_the_human_monitors_help_is_a_part_of_qemus(ask: Ask) -> None:
    for line in ("help", "info", "help info"):
        ((theirs,), (ours,)) = await ask(
            request("human-monitor-command", **{"command-line": line, "cpu-index": 0})
        )
        assert ours["return"].count("\r\n") >= 1
        assert set(ours["return"].splitlines()) <= set(theirs["return"].splitlines())


async def test_an_autoballoon_script(ask: Ask) -> None:
    """What a public one sends: it looks for the balloon, and sets targets from its statistics."""
    data = request("qom-list", path="/machine/peripheral-anon")
    data += request("qom-set", path=DEVICE, property="guest-stats-polling-interval", value=5)
    data += request("query-memory-size-summary")
    data += request("qom-get", path=DEVICE, property="guest-stats")
    data += request("balloon", value=MEMORY) + request("query-balloon") + request("query-name")
    theirs, ours = await ask(data)
    assert ours[2]["return"] == {"base-memory": MEMORY}
    assert theirs.pop(2)["return"] == ours.pop(2)["return"] | {"plugged-memory": 0}
    assert ours == theirs


async def test_commands_that_neither_has(ask: Ask) -> None:
    for command in ("query-events", "nonsense", "Balloon", "query_balloon"):
        theirs, ours = await ask(request(command))
        assert ours == theirs

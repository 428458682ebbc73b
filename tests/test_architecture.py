"""Which room may import which: the table of rooms, and the pure ones' abstinence from I/O."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import protocol
import vhost_balloon
from tests.support.sources import imports

TREES = [Path(package.__file__ or "").parent for package in (protocol, vhost_balloon)]

SMALL = {
    *("errors", "log", "fds", "checked", "sizes", "printable", "name_text", "containment"),
    *("clock", "threads"),
    "setting_kinds",
    "__version__",
}
"""What every room may use, besides itself and what its row names."""

ROOMS: dict[str, str] = {  # from the bottom up: a row names only rows above it
    "protocol": "",
    "service": "",
    "pace": "",
    "figures": "protocol",
    "store": "protocol service",
    "memory": "protocol figures",
    "balloon": "protocol figures",
    "session": "protocol balloon",
    "queues": "protocol figures pace memory balloon session",
    "vm": "protocol figures pace memory balloon queues service store",
    "front_end": "protocol figures pace memory balloon session store queues vm",
    "restart": "protocol figures balloon memory session store queues vm front_end service",
    "metrics": "protocol figures service",
    "config": "protocol figures memory service vm metrics",
    "qmp_server": "protocol",
    "control": "protocol figures balloon memory queues vm restart front_end qmp_server",
    "policy": "protocol figures",
    "hub": "protocol figures metrics policy service config qmp_server",
    "examiner": "protocol memory service config",
    "daemon": "deferred protocol figures service pace store memory balloon session queues vm "
    "front_end restart metrics config qmp_server control",
    "__main__": "deferred daemon protocol figures service store vm config restart",
    "simulator": "protocol",
    "demo": "simulator",
    "ctl": "",
}

SMALL_MAY: dict[str, set[str]] = {
    "clock": set(),
    "threads": set(),
    "errors": set(),
    "printable": set(),
    "name_text": {"printable"},
    "checked": {"errors"},
    "sizes": set(),
    "setting_kinds": {"sizes", "protocol"},
    "deferred": set(),
    "log": {"errors", "printable"},
    "fds": {"errors", "log"},
    "containment": {"errors", "log"},
}
"""The small things, and which of each other they use."""

CTL_MAY = {"sizes", "printable", "name_text", "__version__"}
"""The operator's tool starts fast, and works on a host where the daemon's parts cannot."""

PURE_ROOMS = {"protocol", "figures", "balloon", "session"}
PURE = {
    "vhost_balloon.errors",
    "vhost_balloon.checked",
    "vhost_balloon.printable",
    "vhost_balloon.sizes",
    "vhost_balloon.front_end.documents",
    "vhost_balloon.front_end.partial",
    "vhost_balloon.memory.gathering",
    "vhost_balloon.memory.ranges",
    "vhost_balloon.memory.vector",
    "vhost_balloon.pace.rate",
    "vhost_balloon.queues.decode",
    "vhost_balloon.queues.virtqueue",
    *(
        f"vhost_balloon.policy.{name}"
        for name in (
            "constants",
            "decide",
            "demand",
            "explain.case",
            "explain.host",
            "explain.obstacle",
            "explain.rule",
            "explain.vm",
            "host_text",
            "inputs",
            "interfaces",
            "lines",
            "memory",
            "past",
            "release",
            "report",
            "settings",
        )
    ),
    "vhost_balloon.hub.events",
    "vhost_balloon.hub.vm_figures",
    "vhost_balloon.qmp_server.command",
    "vhost_balloon.qmp_server.schema",
    "vhost_balloon.store.journal",
    "vhost_balloon.store.slots",
}
"""Pure modules in rooms that do I/O."""

IO = {"trio", "socket", "mmap", "os", "ctypes", "select", "fcntl", "threading", "subprocess"}


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room_of(module: str) -> str:
    """The first part below vhost_balloon; protocol is a room itself."""
    top, _, rest = module.partition(".")
    return rest.partition(".")[0] if top == "vhost_balloon" else top


def is_pure(module: str) -> bool:
    return room_of(module) in PURE_ROOMS or module in PURE


def allowed(module: str, name: str) -> bool:
    """Whether module may import name."""
    top = name.partition(".")[0]
    room = room_of(module)
    if top not in ("protocol", "vhost_balloon"):
        return allowed_library(module, room, top)
    if room == "ctl":
        return room_of(name) in CTL_MAY | {"ctl"}
    if room in SMALL_MAY:
        return room_of(name) in SMALL_MAY[room] | {room}
    if room == "simulator" or room == "demo":
        return room_of(name) in {room, "printable", "sizes", *ROOMS[room].split()}
    return room_of(name) in {room, *ROOMS[room].split()} | SMALL


def allowed_library(module: str, room: str, top: str) -> bool:
    if top in sys.stdlib_module_names:
        return not (is_pure(module) and top in IO)
    if top == "construct":
        return room == "protocol"
    if top == "prometheus_client":
        return room == "metrics"
    return top == "trio" and room != "ctl" and not is_pure(module)


MODULES = {
    module_name(path, root): path.read_text() for root in TREES for path in root.rglob("*.py")
}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_it_may(module: str) -> None:
    found = [name for name in imports(MODULES[module]) if not allowed(module, name)]
    assert found == []


def test_a_row_names_only_rooms_above_it() -> None:
    """So no room imports another one that imports it."""
    seen: set[str] = set()
    for room, row in ROOMS.items():
        assert set(row.split()) <= seen | SMALL_MAY.keys(), room
        seen.add(room)


def test_every_room_exists_and_is_named() -> None:
    assert {room_of(module) for module in MODULES} - {""} == {*ROOMS, *SMALL_MAY}


def test_no_module_imports_one_that_imports_it() -> None:
    """Neither directly nor by others, for type checkers neither."""
    graph = {
        module: {found for name in imports(text) if (found := target(name)) not in (None, module)}
        for module, text in MODULES.items()
    }
    while leaves := {module for module, found in graph.items() if not found}:
        graph = {module: found - leaves for module, found in graph.items() if module not in leaves}
    assert not graph


def target(name: str) -> str | None:
    """The module that an import of name reads."""
    return next((m for m in (name, name.rpartition(".")[0]) if m in MODULES), None)


@pytest.mark.parametrize("room", sorted(ROOMS.keys() - {"__main__"}))
def test_a_room_says_what_it_owns_and_re_exports_nothing(room: str) -> None:
    module = room if room == "protocol" else f"vhost_balloon.{room}"
    tree = ast.parse(MODULES[module])
    assert ast.get_docstring(tree), module
    assert len(tree.body) == 1, module


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("protocol.qmp", "import os", ["os"]),
        (
            "protocol.qmp",
            "from vhost_balloon.memory import ranges",
            ["vhost_balloon.memory.ranges"],
        ),
        ("protocol.qmp", "import construct, json, enum", []),
        ("protocol.new", "def f():\n    import trio", ["trio"]),
        ("vhost_balloon.session.new", "import trio", ["trio"]),
        ("vhost_balloon.session.new", "from os.path import join", ["os.path.join"]),
        ("vhost_balloon.session.new", "from vhost_balloon.fds import OwnedFd", []),
        ("vhost_balloon.session.new", "from vhost_balloon.vm import vm", ["vhost_balloon.vm.vm"]),
        ("vhost_balloon.session.new", "from vhost_balloon.session import requests_rings", []),
        (
            "vhost_balloon.session.new",
            "if TYPE_CHECKING:\n    from vhost_balloon.vm.vm import Vm",
            ["vhost_balloon.vm.vm.Vm"],
        ),
        ("vhost_balloon.session.new", "if DEBUG:\n    import mmap", ["mmap"]),
        ("vhost_balloon.queues.virtqueue", "import construct", ["construct"]),
        ("vhost_balloon.queues.virtqueue", "import trio", ["trio"]),
        ("vhost_balloon.queues.ring", "import trio, os", []),
        ("vhost_balloon.queues.ring", "from vhost_balloon import daemon", ["vhost_balloon.daemon"]),
        ("vhost_balloon.front_end.new", "import prometheus_client", ["prometheus_client"]),
        ("vhost_balloon.metrics.new", "import prometheus_client", []),
        ("vhost_balloon.fds", "from vhost_balloon.vm import vm", ["vhost_balloon.vm.vm"]),
        ("vhost_balloon.simulator.new", "from vhost_balloon import fds", ["vhost_balloon.fds"]),
        ("vhost_balloon.simulator.new", "from protocol import vhost_user\nimport os", []),
        ("vhost_balloon.ctl.new", "import trio", ["trio"]),
        ("vhost_balloon.ctl.new", "from protocol import qmp", ["protocol.qmp"]),
        ("vhost_balloon.ctl.new", "from vhost_balloon import __version__\nimport os", []),
    ],
)
def test_the_check_finds_what_it_is_for(module: str, source: str, found: list[str]) -> None:
    assert [name for name in imports(source) if not allowed(module, name)] == found

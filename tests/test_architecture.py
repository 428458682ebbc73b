"""Who may import whom: the wire formats know nobody, the pure core knows no I/O."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import protocol
import vhost_balloon

TREES = [Path(package.__file__ or "").parent for package in (protocol, vhost_balloon)]
PURE = {
    "vhost_balloon.balloon.device",
    "vhost_balloon.balloon.convergence",
    "vhost_balloon.figures.counters",
    "vhost_balloon.queues.decode",
    "vhost_balloon.session.effects",
    "vhost_balloon.errors",
    "vhost_balloon.session.features",
    "vhost_balloon.memory.gathering",
    "vhost_balloon.balloon.guest_stats",
    "vhost_balloon.session.inert_session",
    "vhost_balloon.session.message",
    "vhost_balloon.front_end.documents",
    "vhost_balloon.store.slots",
    "vhost_balloon.front_end.partial",
    "vhost_balloon.printable",
    "vhost_balloon.store.journal",
    "vhost_balloon.memory.ranges",
    "vhost_balloon.pace.rate",
    "vhost_balloon.figures.refusal",
    "vhost_balloon.session.requests_device",
    "vhost_balloon.session.requests_memory",
    "vhost_balloon.session.requests_rings",
    "vhost_balloon.session.session",
    "vhost_balloon.queues.virtqueue",
}
IO = {"trio", "socket", "mmap", "os", "ctypes", "select", "fcntl", "threading", "subprocess"}


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(node: ast.AST) -> Iterator[str]:
    """Every module that is imported at run time: `from a import b` may mean a or a.b."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        yield from imports(child)


def is_in(name: str, allowed: set[str]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in allowed)


def violations(module: str, source: str) -> list[str]:
    """What a module imports that it must not."""
    standard = set(sys.stdlib_module_names)
    if is_in(module, {"protocol"}):
        allowed = (standard - IO) | {"construct", "protocol"}
    elif module in PURE:
        allowed = (standard - IO) | {"protocol"} | PURE
    elif is_in(module, {"vhost_balloon.simulator"}):
        allowed = standard | {"trio", "protocol", "vhost_balloon.simulator"}
    elif is_in(module, {"vhost_balloon.ctl"}):
        allowed = standard | {
            "vhost_balloon.__version__",
            "vhost_balloon.ctl",
            "vhost_balloon.printable",
        }
    else:
        allowed = standard | {"trio", "protocol", "vhost_balloon"}
        if module.startswith("vhost_balloon.metrics.families"):
            allowed.add("prometheus_client")
    return [name for name in imports(ast.parse(source)) if not is_in(name, allowed)]


MODULES = {
    module_name(path, root): path.read_text() for root in TREES for path in root.rglob("*.py")
}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_it_may(module: str) -> None:
    assert violations(module, MODULES[module]) == []


def test_the_modules_named_here_exist() -> None:
    assert set(MODULES) >= PURE
    assert any(name.startswith("vhost_balloon.simulator.") for name in MODULES)


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("protocol.qmp", "import os", ["os"]),
        ("protocol.qmp", "from vhost_balloon import ranges", ["vhost_balloon.memory.ranges"]),
        ("protocol.qmp", "import construct, json, enum", []),
        ("protocol.new", "def f():\n    import trio", ["trio"]),
        ("vhost_balloon.session.session", "import trio", ["trio"]),
        ("vhost_balloon.session.session", "from os.path import join", ["os.path.join"]),
        (
            "vhost_balloon.session.session",
            "from vhost_balloon.fds import OwnedFd",
            ["vhost_balloon.fds.OwnedFd"],
        ),
        ("vhost_balloon.session.session", "from vhost_balloon import fds", ["vhost_balloon.fds"]),
        ("vhost_balloon.session.session", "from vhost_balloon import requests_rings", []),
        (
            "vhost_balloon.session.session",
            "if TYPE_CHECKING:\n    from vhost_balloon.fds import Fd",
            [],
        ),
        ("vhost_balloon.session.session", "if DEBUG:\n    import mmap", ["mmap"]),
        ("vhost_balloon.queues.virtqueue", "import construct", ["construct"]),
        (
            "vhost_balloon.front_end.connection",
            "from construct import Struct",
            ["construct.Struct"],
        ),
        ("vhost_balloon.front_end.connection", "import trio, os", []),
        ("vhost_balloon.front_end.connection", "import prometheus_client", ["prometheus_client"]),
        ("vhost_balloon.metrics.families", "import prometheus_client", []),
        ("vhost_balloon.simulator.wire", "from vhost_balloon import fds", ["vhost_balloon.fds"]),
        ("vhost_balloon.simulator.wire", "from protocol import vhost_user\nimport os", []),
        ("vhost_balloon.ctl.text", "import trio", ["trio"]),
        ("vhost_balloon.ctl.text", "from protocol import qmp", ["protocol.qmp"]),
        ("vhost_balloon.ctl.text", "from vhost_balloon import __version__\nimport os", []),
        ("vhost_balloon.simulator", "from vhost_balloon.simulator.wire import x", []),
    ],
)
def test_the_check_finds_what_it_is_for(module: str, source: str, found: list[str]) -> None:
    assert violations(module, source) == found

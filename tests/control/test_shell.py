"""qmp-shell, QEMU's own client for humans and scripts, on the control socket."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest
import trio

from tests.support.control_client import GIB, FakeFrontEnd, attach
from vhost_balloon.control.server import serve_control
from vhost_balloon.vm.vm import Vm


@pytest.fixture
async def path(vm: Vm, short_folder: Path, nursery: trio.Nursery) -> Path:
    path = short_folder / "web1.control"
    listening = trio.socket.socket(socket.AF_UNIX)
    await listening.bind(str(path))
    listening.listen(5)
    await nursery.start(serve_control, trio.SocketListener(listening), vm)
    return path


@pytest.fixture
def web1(vm: Vm) -> FakeFrontEnd:
    return attach(vm)


async def shell(path: Path, *words: str, lines: str) -> str:
    """Give qmp-shell lines to execute; return what it prints."""
    done = await trio.run_process(
        [sys.executable, "-c", "from qemu.qmp.qmp_shell import main; main()", *words, str(path)],
        stdin=lines.encode(),
        capture_stdout=True,
        capture_stderr=True,
        env=os.environ | {"HOME": str(path.parent)},  # for its history
    )
    assert b"Traceback" not in done.stderr
    return done.stdout.decode()


async def test_commands(path: Path, web1: FakeFrontEnd) -> None:
    text = await shell(path, lines="query-balloon\nballoon value=536870912\nquery-name\n")
    assert f'{{"return": {{"actual": {GIB}}}}}' in text
    assert '{"return": {"name": "web1"}}' in text
    assert web1.targets == [GIB // 2]


async def test_relative_paths_and_pretty_replies(path: Path, web1: FakeFrontEnd) -> None:
    lines = "qom-get path=web1/virtio-backend property=guest-stats\nqom-list path=peripheral\n"
    text = await shell(path, "--pretty", "--verbose", lines=lines)
    assert '"stat-free-memory": 18446744073709551615' in text
    assert '"type": "child<virtio-balloon-pci>"' in text
    assert json.dumps({"name": "web1"})[1:-1] in text


async def test_the_human_monitor(path: Path, web1: FakeFrontEnd) -> None:
    text = await shell(path, "--hmp", lines="info balloon\nballoon 512\nballoon 1G\nnope\n")
    assert "balloon: actual=1024" in text
    assert "extraneous characters" in text
    assert "unknown command: 'nope'" in text
    assert web1.targets == [GIB // 2]

"""A QEMU without a running guest, whose QMP server and balloon the daemon is compared with."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.rig.process import kill, spawn
from tests.rig.qemu import program
from tests.rig.waiting import wait_until
from tests.support.control_client import Client

MEMORY_MIB: Final = 512
_END: Final = b'\n{"execute":"query-name","id":"the end"}'


@contextmanager
def stopped_qemu(folder: Path, balloon_id: str | None) -> Iterator[Path]:
    """QEMU with stopped processors, called as its balloon; yield the path of its QMP socket."""
    path = folder / "qmp.sock"
    arguments = [
        *program(),
        *("-nodefaults", "-no-user-config", "-display", "none", "-S", "-accel", "tcg"),
        *("-machine", "q35", "-m", str(MEMORY_MIB), "-name", balloon_id or "none"),
        *("-qmp", f"unix:{path},server=on,wait=off"),
    ]
    if balloon_id is not None:
        arguments += ["-device", f"virtio-balloon-pci,id={balloon_id}"]
    with (folder / "qemu.log").open("wb") as log:
        process = spawn(arguments, output=log)
    try:
        wait_until(lambda: _listens(path), 30)
        yield path
    finally:
        kill(process)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


async def converse(client: Client, data: bytes) -> list[Any]:
    """Send input after negotiation; return the answers to it, comparable between servers.

    Input that leaves something open ends with a byte that resets a server.
    """
    await client.negotiate()
    await client.stream.send_all(data + _END)
    answers = []
    while (answer := await client.read()).get("id") != "the end":
        if "event" not in answer:
            answers.append(comparable(answer))
    await client.stream.aclose()
    return answers


def comparable(answer: Any) -> Any:
    """An answer without what may differ: positions in the input, and how a number is written."""
    if "error" in answer:
        desc = re.sub(r"^\d+:\d+: ", "", answer["error"]["desc"]).replace("\0", "")
        desc = re.sub(r"\\u.* is not", r"\\u is not", desc)
        desc = re.sub(r"pc-q35-[0-9.]+-machine", "machine", desc)
        return {**answer, "error": {**answer["error"], "desc": desc}}
    return {name: _number(value) for name, value in answer.items()}


def _number(value: Any) -> Any:
    is_beyond = isinstance(value, int) and not -(1 << 63) <= value < 1 << 64
    return float(value) if is_beyond else value

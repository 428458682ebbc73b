"""vhost-balloonctl, in a process of its own and in this one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio

from tests.support.end_to_end import Host, serving
from vhost_balloon.ctl.__main__ import main

CTL = (sys.executable, "-m", "vhost_balloon.ctl")


class Done(NamedTuple):
    """The result of a command."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        """Parse the one line that a successful command printed."""
        assert (self.status, self.err, self.out.count("\n")) == (0, "", 1)
        return json.loads(self.out)


async def ctl(folder: Path, *words: str) -> Done:
    """Run a command for the VMs of a folder."""
    done = await trio.run_process(
        [*CTL, f"--folder={folder}", *words], capture_stdout=True, capture_stderr=True, check=False
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def plain(*words: str) -> Done:
    """Run a command."""
    done = subprocess.run([*CTL, *words], capture_output=True, text=True, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> Done:
    """Run a command in this process."""
    try:
        status = main(words)
    except SystemExit as end:
        status = int(str(end.code))
    return Done(status, *capsys.readouterr())


def failure(capsys: pytest.CaptureFixture[str], *words: str, status: int = 1) -> str:
    """Run a command that must fail; return its one line."""
    found, out, err = run(capsys, *words)
    assert (found, out) == (status, "")
    line, end, rest = err.partition("\n")
    assert (end, rest) == ("\n", "")
    assert line.isprintable()
    return line.removeprefix("vhost-balloonctl: ")


@asynccontextmanager
async def vm_served(folder: Path, name: str = "vm1", *options: str) -> AsyncIterator[Host]:
    """Run a VM's daemon in this process, with NAME.sock and NAME.control in a folder."""
    control = f"--control-socket={folder / name}.control"
    async with serving(folder, control, *options, name=name) as host:
        yield host

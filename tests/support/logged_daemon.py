"""Runs the daemon, or a program of a few lines, with given standard descriptors."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.command import COMMAND
from tests.support.helpers import readable

SECONDS = 20


@contextmanager
def started(folder: Path, *options: str, stderr: int, **popen: object) -> Iterator[Path]:
    """A daemon that serves vm1; the path of its control socket."""
    control = folder / "control"
    command = [*COMMAND, f"--socket-path={folder}/vm1.sock", f"--control-socket={control}"]
    with subprocess.Popen([*command, *options], stderr=stderr, **popen) as process:  # type: ignore[call-overload]
        try:
            wait_for(control)
            yield control
            process.send_signal(signal.SIGTERM)
            assert process.wait(SECONDS) == 0
        finally:
            process.kill()


def wait_for(control: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(str(control))
                sock.settimeout(SECONDS)
                assert sock.recv(1) == b"{", "it answers, so it handles signals too"
                return
            except OSError:
                assert time.monotonic() < deadline
        time.sleep(0.01)


def pid_of(control: Path) -> int:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(control))
        found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int.from_bytes(found[:4], "little")


def full_pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.write(writer, b"x" * fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ))
    os.set_blocking(writer, True)
    return reader, writer


def read_until(reader: int, text: str) -> str:
    said = b""
    deadline = time.monotonic() + SECONDS
    while text.encode() not in said:
        assert readable(reader, max(deadline - time.monotonic(), 0)), said[-2000:]
        said += os.read(reader, 1 << 16)
    return said.decode()


def python(program: str, **popen: object) -> subprocess.CompletedProcess[str]:
    """Run a program that imports the daemon's modules."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, text=True, timeout=SECONDS, check=False, **popen)  # type: ignore[call-overload, no-any-return]

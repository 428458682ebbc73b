"""A trio program in another process that a test tells what to do, one JSON line at a time.

Simulated guests live in such a process where the daemon looks at who its front ends are: it has to
be in the daemon's PID namespace. It ends with this process.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import trio

from tests.rig import process
from tests.support.paths import ROOT

Handler = Callable[..., Awaitable[Any]]


class RemoteError(Exception):
    """The other side failed; with its traceback or its log."""


class Remote:
    """Runs a module that calls serve(); a context manager.

    forker: a thread that forks into the namespace where it is to live.
    """

    def __init__(self, module: str, forker: ThreadPoolExecutor = process.OWN_FORKER) -> None:
        self._log = tempfile.NamedTemporaryFile(prefix="rig-remote-")  # noqa: SIM115
        ours, theirs = socket.socketpair()
        with theirs:
            self._process: subprocess.Popen[bytes] = process.spawn(
                [sys.executable, "-m", module, str(theirs.fileno())],
                output=self._log.file,
                environment={"PYTHONPATH": str(ROOT)},
                pass_fds=[theirs.fileno()],
                forker=forker,
            )
        self._socket = ours
        self._lines = ours.makefile("r")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        process.kill(self._process)
        self._lines.close()
        self._socket.close()
        self._log.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def log(self) -> str:
        """What it has printed."""
        return process.text_tail(Path(self._log.name))

    def call(self, order: str, *, timeout: float = 120, **arguments: Any) -> Any:
        """Have something done, and wait for what it gives."""
        self.begin(order, **arguments)
        return self.result(timeout)

    def begin(self, order: str, **arguments: Any) -> None:
        """Have something done; result() has to follow."""
        self._socket.sendall(json.dumps([order, arguments]).encode() + b"\n")

    def result(self, timeout: float = 120) -> Any:
        """What the order that was begun gave. Raises RemoteError."""
        self._socket.settimeout(timeout)
        try:
            line = self._lines.readline()
        except TimeoutError:
            raise RemoteError(f"no answer within {timeout} s: {self.log()}") from None
        except ConnectionResetError:
            line = ""
        if not line:
            raise RemoteError(f"it has ended: {self.log()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RemoteError(answer["error"])
        return answer["return"]


async def serve(handlers: Mapping[str, Handler]) -> None:
    """The other side: carry out orders, one after the other, until nobody is there any more."""
    with trio.socket.fromfd(int(sys.argv[1]), socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        buffer = b""
        while data := await sock.recv(1 << 16):
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                order, arguments = json.loads(line)
                try:
                    answer = {"return": await handlers[order](**arguments)}
                except Exception:
                    answer = {"error": traceback.format_exc()}
                stream = trio.SocketStream(sock)
                await stream.send_all(json.dumps(answer).encode() + b"\n")

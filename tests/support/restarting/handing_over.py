"""Starts a daemon that is handed listening sockets, as by a service manager."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.restarting.service_manager import EXEC


class Started:
    """A daemon that was handed sockets and notifies its service manager."""

    def __init__(self, sockets: dict[str, socket.socket], options: tuple[str, ...]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(f"{self._folder.name}/notify")
        self._manager.settimeout(20)
        fds = [sock.fileno() for sock in sockets.values()]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", EXEC, ":".join(sockets), ",".join(map(str, fds))),
                *(sys.executable, "-m", "vhost_balloon", *options),
            ],
            pass_fds=fds,
            env=os.environ | {"NOTIFY_SOCKET": self._manager.getsockname()},
            stderr=subprocess.PIPE,
            text=True,
        )

    def told(self) -> str:
        """Return its next message to the service manager."""
        return self._manager.recv(4096).decode()

    def wait_logged(self, text: str) -> None:
        """Read its log up to a line with a text."""
        assert self.process.stderr is not None
        while text not in (line := self.process.stderr.readline()):
            assert line, "the daemon ended"

    def end(self) -> tuple[int, str]:
        """Send SIGTERM; return the exit status and the rest of the log."""
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=10)
        return self.process.returncode, log

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()
        self._manager.close()
        self._folder.cleanup()


@contextmanager
def handed(*options: str, **sockets: socket.socket) -> Iterator[Started]:
    started = Started(sockets, options)
    try:
        yield started
    finally:
        started.close()
        for sock in sockets.values():
            sock.close()

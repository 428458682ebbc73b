"""Starts a daemon that is handed listening sockets, as by a service manager."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from tests.support.restarting.service_manager import EXEC


class Started:
    """A daemon that was handed sockets and notifies its service manager."""

    def __init__(
        self, sockets: Sequence[tuple[str, socket.socket]], options: tuple[str, ...]
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(f"{self._folder.name}/notify")
        self._manager.settimeout(20)
        names = ":".join(name for name, _ in sockets)
        fds = [sock.fileno() for _, sock in sockets]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", EXEC, names, ",".join(map(str, fds))),
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
def handed_pairs(sockets: Sequence[tuple[str, socket.socket]], *options: str) -> Iterator[Started]:
    """Hand over sockets of which several may have one name."""
    started = Started(sockets, options)
    try:
        yield started
    finally:
        started.close()
        for _, sock in sockets:
            sock.close()


def handed(*options: str, **sockets: socket.socket) -> AbstractContextManager[Started]:
    return handed_pairs([*sockets.items()], *options)

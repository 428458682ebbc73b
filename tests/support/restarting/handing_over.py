"""Starts a daemon with listening sockets, as a service manager hands them over."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

# What systemd does between fork and exec: the descriptors from 3 on, and who they are meant for.
_EXEC = """
import os, sys
names, fds, *command = sys.argv[1:]
for number, fd in enumerate(fds.split(",")):
    os.dup2(int(fd), 60 + number)
for number, _ in enumerate(fds.split(",")):
    os.dup2(60 + number, 3 + number)
    os.close(60 + number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(number + 1), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""


class Started:
    """A daemon that was handed sockets, and that tells when it serves."""

    def __init__(self, sockets: dict[str, socket.socket], options: tuple[str, ...]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(f"{self._folder.name}/notify")
        self._manager.settimeout(20)
        fds = [sock.fileno() for sock in sockets.values()]
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", _EXEC, ":".join(sockets), ",".join(map(str, fds))),
                *(sys.executable, "-m", "vhost_balloon", *options),
            ],
            pass_fds=fds,
            env=os.environ | {"NOTIFY_SOCKET": self._manager.getsockname()},
            stderr=subprocess.PIPE,
            text=True,
        )

    def told(self) -> str:
        """The next that it tells the service manager."""
        return self._manager.recv(4096).decode()

    def wait_logged(self, text: str) -> None:
        """Read its log up to a line with this text."""
        assert self.process.stderr is not None
        while text not in (line := self.process.stderr.readline()):
            assert line, "it ended"

    def end(self) -> tuple[int, str]:
        """SIGTERM; exit status, and what it logged."""
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

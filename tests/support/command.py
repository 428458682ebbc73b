"""The vhost-balloon command in a process of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

COMMAND = [sys.executable, "-m", "vhost_balloon"]


def run(*arguments: object, fd: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        pass_fds=[] if fd is None else [fd],
    )


class Daemon:
    """A running daemon."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stderr is not None
        self._stderr = process.stderr
        self.first_line = ""

    def wait_for_line(self) -> None:
        """Wait for the line that says what is served. An earlier front end may be attached by
        then."""
        while "serving" not in self.first_line:
            self.first_line = self._stderr.readline()
            assert self.first_line, "the daemon ended"

    def wait_for_socket(self, path: Path) -> None:
        """Wait until the socket accepts connections."""
        while True:
            with socket.socket(socket.AF_UNIX) as sock, suppress(OSError):
                return sock.connect(str(path))
            time.sleep(0.01)

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; return the exit status and the rest of the log."""
        self.process.send_signal(number)
        log = self._stderr.read()  # before wait(): the daemon could block on a full pipe
        code = self.process.wait(timeout=10)
        return code, log


@contextmanager
def daemon(
    *arguments: object,
    fd: int | None = None,
    wait_for: Path | None = None,
    within: Sequence[str] = (),
) -> Iterator[Daemon]:
    """Start the command and wait until it serves. within: a command that runs it."""
    with subprocess.Popen(
        [*within, *COMMAND, *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        pass_fds=[] if fd is None else [fd],
    ) as process:
        try:
            started = Daemon(process)
            if wait_for is None:
                started.wait_for_line()
            else:
                started.wait_for_socket(wait_for)
            yield started
        finally:
            process.kill()


def listening(path: Path) -> socket.socket:
    """Return a listening socket."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    return sock

"""The daemon as a subprocess, started as an operator starts it."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

from tests.rig import process
from tests.rig.errors import DaemonError
from tests.rig.qmp import QMPClient
from tests.rig.waiting import wait_until

START_SECONDS: Final = 20.0
STOP_SECONDS: Final = 3.0


class Daemon(process.Started):
    """One `python -m vhost_balloon`; a context manager that terminates it at the end.

    Args:
        *options: more options, such as "--no-reporting".
        name: of the VM.
        control: path of the control socket, by default in its own folder.
        environment: variables to add to ours.

    Attributes:
        folder: holds the sockets and daemon.log until close().
        socket: path of the front-end socket.
        control: path of the control socket.
    """

    def __init__(
        self,
        *options: str,
        name: str = "vm",
        control: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rig-daemon-"))
        self.socket = self.folder / f"{name}.sock"
        self.control = control or self.folder / "control"
        self._environment = dict(environment or {})
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Terminate the daemon. A bad exit is an error unless something else failed."""
        try:
            if kind is None and self.running():
                self.terminate()
            elif value is not None:
                value.add_note(f"--- daemon.log\n{self.log()}")
        finally:
            self.close()

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        return self._started().pid

    def command(self) -> list[str]:
        """The command line."""
        return [
            *(sys.executable, "-m", "vhost_balloon"),
            f"--socket-path={self.socket}",
            f"--control-socket={self.control}",
            *self._options,
        ]

    def start(self, timeout: float = START_SECONDS) -> None:
        """Start the daemon and wait for the control socket, which opens last.

        Raises:
            DaemonError: it ended, or there was no socket within timeout seconds.
        """
        with (self.folder / "daemon.log").open("ab") as log:
            self._process = process.spawn(self.command(), output=log, environment=self._environment)

        def serves() -> bool:
            if not self.running():
                raise DaemonError(f"it ended with status {self.status()}\n{self.log()}")
            return connectable(self.control)

        late = f"no control socket within {timeout} s"
        wait_until(serves, timeout, lambda: DaemonError(f"{late}\n{self.log()}"), pause=0.05)

    def terminate(self, timeout: float = STOP_SECONDS) -> None:
        """SIGTERM.

        Raises:
            DaemonError: it did not end with status 0 within timeout seconds.
        """
        daemon = self._started()
        daemon.terminate()
        if not process.ended(daemon, timeout):
            raise DaemonError(f"still there {timeout} s after SIGTERM\n{self.log()}")
        if daemon.returncode != 0:
            raise DaemonError(f"ended with status {daemon.returncode} on SIGTERM\n{self.log()}")

    def kill(self) -> None:
        """SIGKILL it; may be called twice."""
        if self._process is not None and self._process.poll() is None:
            process.kill(self._process)

    def close(self) -> None:
        """Kill it if it still runs, and delete its folder. May be called twice."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def running(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def status(self) -> int | None:
        """Exit status, None while it runs."""
        return self._started().poll()

    def log(self) -> str:
        """Its stdout and stderr."""
        return process.text_tail(self.folder / "daemon.log", 1 << 20)

    def wait_logged(self, pattern: str, timeout: float = START_SECONDS) -> re.Match[str]:
        """Wait until the log has a match of a regular expression.

        Raises:
            DaemonError: there was none within timeout seconds.
        """
        late = f"no {pattern!r} within {timeout} s"
        wait_until(
            lambda: re.search(pattern, self.log()) is not None,
            timeout,
            lambda: DaemonError(f"{late}\n{self.log()}"),
            pause=0.05,
        )
        match = re.search(pattern, self.log())
        assert match is not None
        return match

    def qmp(self) -> QMPClient:
        """A new connection to the control socket."""
        return QMPClient(self.control)

    def rss(self) -> int:
        """Resident set size in bytes, including the guest pages it touched through its mapping."""
        return process.rss(self.pid)

    def pss(self) -> int:
        """Proportional set size in bytes."""
        return process.pss(self.pid)

    def fds(self) -> dict[int, str]:
        """Open descriptors: number -> what it refers to."""
        return process.fds(self.pid)

    def mappings(self) -> list[str]:
        """Lines of its /proc/PID/maps."""
        return process.mappings(self.pid)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise DaemonError("the daemon was not started")
        return self._process


def connectable(path: Path) -> bool:
    """Whether a socket file accepts connections."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True

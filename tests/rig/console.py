"""The guest's serial console, served by guest_init.sh's command loop."""

from __future__ import annotations

import base64
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.rig.errors import CommandError, GuestError, RigTimeout
from tests.rig.waiting import connected, unix_connection

READY: Final = b"@@ready\n"
_LINE: Final = 512
_CHECK_SECONDS: Final = 1.0


class Console:
    """Runs commands in the guest, one at a time; safe to share between threads.

    Args:
        path: unix socket of the serial port.
        check: called about once a second while waiting; raises if waiting is pointless.
    """

    def __init__(self, path: Path, check: Callable[[], None], *, timeout: float) -> None:
        self._check = check
        self._lock = threading.Lock()
        self._buffer = b""
        self._count = 0
        self.socket = connected(
            lambda: unix_connection(path),
            timeout,
            lambda: RigTimeout(f"no console at {path}"),
            check,
        )

    def set_check(self, check: Callable[[], None]) -> None:
        """Replace the check."""
        self._check = check

    def close(self) -> None:
        """Close the connection; may be called twice."""
        self.socket.close()

    def wait_ready(self, timeout: float) -> None:
        """Wait until the command loop has started (once per boot)."""
        deadline = time.monotonic() + timeout
        with self._lock:
            self._read_until(re.compile(re.escape(READY)), deadline, "the guest's shell")

    def run(self, command: str, timeout: float) -> str:
        """Run a shell command, possibly of several lines, in its own subshell.

        Returns:
            Its stdout and stderr.

        Raises:
            CommandError: it ended with a non-zero status.
            RigTimeout: it did not end within timeout seconds; it keeps running, and the console
                is busy until it ends.
        """
        deadline = time.monotonic() + timeout
        if not self._lock.acquire(timeout=timeout):
            raise RigTimeout(f"the console was busy for {timeout} s before {command!r}")
        try:
            self._count += 1
            nonce = str(self._count)
            self._send(command, nonce)
            pattern = rb"@@begin %b\n(.*)\n@@end %b (\d+)\n" % (nonce.encode(), nonce.encode())
            match = self._read_until(re.compile(pattern, re.DOTALL), deadline, repr(command))
        finally:
            self._lock.release()
        output, status = match[1].decode(errors="replace"), int(match[2])
        if status != 0:
            raise CommandError(command, status, output)
        return output

    def send(self, command: str) -> None:
        """Start a command without waiting (it may end the guest)."""
        with self._lock:
            self._count += 1
            self._send(command, str(self._count))

    def _send(self, command: str, nonce: str) -> None:
        encoded = base64.b64encode(command.encode()).decode()
        lines = [encoded[start : start + _LINE] for start in range(0, len(encoded), _LINE)]
        text = "\n".join([*lines, f"run {nonce}\n"])
        try:
            self.socket.settimeout(30)
            self.socket.sendall(text.encode())
        except OSError as error:
            raise GuestError(f"the console is gone: {error}") from error

    def _read_until(
        self, pattern: re.Pattern[bytes], deadline: float, wanted: str
    ) -> re.Match[bytes]:
        """Read until pattern is found; drop everything up to its end."""
        while True:
            match = pattern.search(self._buffer)
            if match is not None:
                self._buffer = self._buffer[match.end() :]
                return match
            left = deadline - time.monotonic()
            if left <= 0:
                raise RigTimeout(f"no end of {wanted} in time; read so far: {self._tail()}")
            self._receive(min(left, _CHECK_SECONDS))

    def _receive(self, seconds: float) -> None:
        self.socket.settimeout(seconds)
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            self._check()
            return
        except OSError as error:
            raise GuestError(f"the console is gone: {error}") from error
        if not data:
            raise GuestError("the console ended")
        self._buffer += data

    def _tail(self) -> str:
        return self._buffer[-500:].decode(errors="replace")

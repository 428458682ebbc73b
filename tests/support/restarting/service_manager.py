"""A service manager with a descriptor store that restarts the daemon.

It treats FDSTORE=1, FDSTOREREMOVE=1 and LISTEN_FDS as systemd does, and also ignores duplicates
silently (kcmp). tests/systemd runs the real one.
"""

from __future__ import annotations

import array
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

MAX_FAILURES: Final = 20
"""After so many processes in a row that ended before they were ready, start no more."""

_SYS_KCMP: Final = 312  # x86-64
_libc = ctypes.CDLL(None, use_errno=True)

EXEC: Final = """
import os, sys
names, fds, *command = sys.argv[1:]
fds = [int(fd) for fd in fds.split(",") if fd]
high = [os.dup2(fd, 500 + number) for number, fd in enumerate(fds)]
for number, fd in enumerate(high):
    os.dup2(fd, 3 + number)
os.closerange(3 + len(high), 2000)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(high)), LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""
"""Does what systemd does between fork and exec: moves descriptors to 3 and up, and sets LISTEN_*.
Arguments: names, descriptors, command."""


def same_file(one: int, other: int) -> bool:
    pid = os.getpid()
    return int(_libc.syscall(_SYS_KCMP, pid, pid, 0, one, other)) == 0


class ServiceManager:
    """Runs one daemon, keeps what it stores, and restarts it when it is killed. A context manager.

    limit: FileDescriptorStoreMax. program: arguments for Python in place of the daemon's module.
    """

    def __init__(
        self,
        *options: str,
        limit: int = 100,
        program: Sequence[str] = ("-m", "vhost_balloon"),
        environment: dict[str, str] | None = None,
        crashes: Sequence[str] = (),
    ) -> None:
        """crashes: CRASH_AT (see restarting.crashing) of each process in turn."""
        self._folder = tempfile.TemporaryDirectory()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"{self._folder.name}/notify")
        self.options = options
        self.limit = limit
        self.program = program
        self.environment = environment or {}
        self._crashes = list(crashes)
        self.stored: list[tuple[str, int]] = []
        self.log = Path(self._folder.name, "log")
        self.restarts = 0
        self.told: list[str] = []
        self._ready = threading.Event()
        self._last_read = threading.Event()
        self._ending = False
        self._failures = 0
        self._abandoned = os.eventfd(0)
        self._process: subprocess.Popen[bytes] | None = None
        self._listener = threading.Thread(target=self._listen)
        self._watcher: threading.Thread | None = None
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        """Held while it is decided whether another daemon starts."""
        self._reading = threading.Lock()

    def __enter__(self) -> Self:
        self._listener.start()
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(signal.SIGKILL)
        self._socket.shutdown(socket.SHUT_RDWR)
        self._listener.join()
        self._socket.close()
        for fd in (self._abandoned, *(fd for _, fd in self.stored)):
            os.close(fd)
        self._folder.cleanup()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Start the daemon and wait until it is ready."""
        self._ending = False
        self._spawn()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        self.wait_ready()

    def wait_ready(self, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not self._ready.wait(0.05):
            assert self._failures < MAX_FAILURES, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End the daemon for now; return its exit status."""
        with self._starting:
            self._ending = True
            self.process.send_signal(number)
        assert self._watcher is not None
        self._watcher.join()
        return self.process.returncode

    def abandon(self) -> None:
        """Treat the daemon, which cannot be killed, as ended. The caller owns its process."""
        self._ending = True
        assert self._watcher is not None
        os.eventfd_write(self._abandoned, 1)
        self._watcher.join()
        self._read_all()

    def kill(self, number: signal.Signals = signal.SIGKILL, *, wait: bool = True) -> None:
        """End the daemon, and wait until the next one has started and, if wait, is ready."""
        self._ready.clear()
        restarts = self.restarts
        self.process.send_signal(number)
        if wait:
            self.wait_ready()
        while self.restarts == restarts:
            time.sleep(0.01)

    def wait_restarts(self, count: int, seconds: float = 30) -> None:
        """Wait until the daemon was restarted count times and is ready."""
        deadline = time.monotonic() + seconds
        while self.restarts < count:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.01)
        self.wait_ready()

    def names(self) -> list[str]:
        """Names of the stored descriptors, after all messages so far."""
        self._read_all()
        return sorted(name for name, _ in self.stored)

    def forget(self, *prefixes: str) -> None:
        """Lose the stored descriptors whose names have these prefixes."""
        for entry in [entry for entry in self.stored if entry[0].startswith(prefixes)]:
            os.close(entry[1])
            self.stored.remove(entry)

    def _spawn(self) -> None:
        self._ready.clear()
        crash = {"CRASH_AT": self._crashes.pop(0)} if self._crashes else {}
        with self._lock:
            fds = [fd for _, fd in self.stored]
            names = ":".join(name for name, _ in self.stored)
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    [
                        *(sys.executable, "-c", EXEC, names, ",".join(map(str, fds))),
                        *(sys.executable, *self.program, *self.options),
                    ],
                    pass_fds=fds,
                    env=os.environ
                    | {"NOTIFY_SOCKET": self._socket.getsockname(), "FDSTORE": str(self.limit)}
                    | self.environment
                    | crash,
                    stderr=log,
                )

    def _watch(self) -> None:
        while True:
            if not self._has_ended():
                return
            self._read_all()
            with self._starting:
                if self._ending:
                    return
                self.restarts += 1
                self._failures = 0 if self._ready.is_set() else self._failures + 1
                if self._failures < MAX_FAILURES:
                    self._spawn()

    def _has_ended(self) -> bool:
        """Wait until the daemon ends; return False if it is abandoned first."""
        pidfd = os.pidfd_open(self.process.pid)
        try:
            either = select.poll()
            either.register(pidfd, select.POLLIN)
            either.register(self._abandoned, select.POLLIN)
            ready = [fd for fd, _ in either.poll()]
        finally:
            os.close(pidfd)
        if self._abandoned in ready:
            os.eventfd_read(self._abandoned)
            return False
        self.process.wait()
        return True

    def _read_all(self) -> None:
        """Read the daemon's last messages, as systemd does before a restart."""
        with self._reading, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"LAST=1", self._socket.getsockname())
            self._last_read.wait()
            self._last_read.clear()

    def _listen(self) -> None:
        while True:
            data, ancillary, _, _ = self._socket.recvmsg(4096, 4096)
            if not data:
                return
            fds = array.array("i")
            for _, _, content in ancillary:
                fds.frombytes(content)
            with self._lock:
                self._obey(data.decode(), list(fds))

    def _obey(self, text: str, fds: list[int]) -> None:
        fields = dict(line.partition("=")[::2] for line in text.splitlines())
        if "LAST" in fields:
            self._last_read.set()
        elif "FDSTORE" in fields:
            assert fields["FDPOLL"] == "0"
            for fd in fds:
                known = any(same_file(fd, other) for _, other in self.stored)
                if known or len(self.stored) >= self.limit:
                    os.close(fd)
                else:
                    self.stored.append((fields["FDNAME"], fd))
        elif "FDSTOREREMOVE" in fields:
            for entry in [entry for entry in self.stored if entry[0] == fields["FDNAME"]]:
                os.close(entry[1])
                self.stored.remove(entry)
        else:
            self.told.append(text)
        if "READY" in fields:
            self._ready.set()

"""QEMU's qtest protocol: one command per line, answered by one line.

Source: QEMU, system/qtest.c. Under `-accel qtest` no guest code runs: ports, memory and device
registers are read and written through this socket alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.rig.waiting import connected, unix_connection

ANSWER_SECONDS: Final = 30.0


class QtestError(Exception):
    """QEMU refused a command, or the connection ended."""


class Qtest:
    """A client of a qtest socket on which QEMU listens."""

    def __init__(self, path: Path, *, timeout: float = ANSWER_SECONDS) -> None:
        """Connect, waiting up to timeout seconds for QEMU to listen."""
        self._socket = connected(
            lambda: unix_connection(path),
            timeout,
            lambda: QtestError(f"nobody listens on {path}"),
        )
        self._socket.settimeout(timeout)
        self._buffer = b""

    def close(self) -> None:
        """Close the connection; QEMU runs on."""
        self._socket.close()

    def send(self, command: str) -> None:
        """Send a command; receive() must follow."""
        self._socket.sendall(command.encode() + b"\n")

    def receive(self) -> str:
        """Return the text after OK in the next answer. Raises QtestError."""
        while b"\n" not in self._buffer:
            data = self._socket.recv(4096)
            if not data:
                raise QtestError("the qtest connection ended")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        status, _, value = line.decode().partition(" ")
        if status != "OK":
            raise QtestError(f"qtest answered {line.decode()!r}")
        return value

    def command(self, command: str) -> str:
        """Send a command and return its answer. Raises QtestError."""
        self.send(command)
        return self.receive()

    def outl(self, port: int, value: int) -> None:
        self.command(f"outl {port:#x} {value:#x}")

    def inl(self, port: int) -> int:
        return int(self.command(f"inl {port:#x}"), 16)

    def read(self, size: int, address: int) -> int:
        """Read a register of 1, 2, 4 or 8 bytes at a guest physical address."""
        return int(self.command(f"read{_SUFFIX[size]} {address:#x}"), 16)

    def write(self, size: int, address: int, value: int) -> None:
        """Write a register of 1, 2, 4 or 8 bytes at a guest physical address."""
        self.command(write_command(size, address, value))


def write_command(size: int, address: int, value: int) -> str:
    """Return the command that writes a register, for sending it separately."""
    return f"write{_SUFFIX[size]} {address:#x} {value:#x}"


_SUFFIX: Final = {1: "b", 2: "w", 4: "l", 8: "q"}

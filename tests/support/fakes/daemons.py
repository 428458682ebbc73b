"""Control sockets in a folder whose fake daemons answer properly or not."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

GREETING: Final = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
OK: Final = b'{"return": {}}\r\n'
EVENT: Final = b'{"event": "BALLOON_CHANGE", "data": {}}\r\n'
VM: Final[dict[str, Any]] = {
    "id": "web1", "attached": True, "state": "done", "target": 1 << 30, "guest-memory": 1 << 30,
}  # fmt: skip

Serve = Callable[[socket.socket], None]
"""Serves one connection; its OSErrors end it."""


def returned(value: Any) -> bytes:
    return json.dumps({"return": value}).encode() + b"\r\n"


@contextmanager
def fake_daemons(folder: Path, serves: Mapping[str, Serve]) -> Iterator[None]:
    """Serve NAME.control in folder for each name."""
    with ExitStack() as stack:
        for name, serve in serves.items():
            stack.enter_context(listening(folder / f"{name}.control", serve))
        yield


@contextmanager
def listening(path: Path, serve: Serve) -> Iterator[None]:
    """Serve each connection of a socket in a thread."""
    connections: list[threading.Thread] = []

    def accept() -> None:
        with suppress(OSError):  # the end
            while True:
                connection, _ = listener.accept()
                connections.append(threading.Thread(target=run, args=(connection,), daemon=True))
                connections[-1].start()

    def run(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            serve(connection)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield
        path.unlink()
        listener.shutdown(socket.SHUT_RDWR)
        for started in (thread, *connections):
            started.join(10)
            assert not started.is_alive()


def answering(answers: Mapping[str, bytes] | None = None, **members: Any) -> Serve:
    """A daemon of VM with these members and answers by command; other commands succeed."""
    known = {"query-vms": returned([VM | {k.replace("_", "-"): v for k, v in members.items()}])}
    known |= answers or {}

    def serve(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        with connection.makefile("rb") as requests:
            for line in requests:
                connection.sendall(known.get(json.loads(line)["execute"], OK))

    return serve


def replies(*messages: bytes) -> Serve:
    """Send the first message at once and each other one after a request; then hang up."""

    def serve(connection: socket.socket) -> None:
        with connection.makefile("rb") as requests:
            for number, message in enumerate(messages):
                if number and not requests.readline():
                    return
                connection.sendall(message)

    return serve


def say_nothing(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def flood(first: bytes, again: bytes) -> Serve:
    """Send first, then again without end."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(again)

    return serve


@contextmanager
def full_backlog(path: Path) -> Iterator[None]:
    """A socket whose backlog is full."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        yield


def nobody_listens(path: Path) -> None:
    """Leave a socket file without a listener."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

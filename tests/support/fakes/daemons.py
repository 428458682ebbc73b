"""Fake control sockets in a folder, good and bad, each served by a thread."""

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
    """Have NAME.control in a folder for each name."""
    with ExitStack() as stack:
        for name, serve in serves.items():
            stack.enter_context(listening(folder / f"{name}.control", serve))
        yield


@contextmanager
def listening(path: Path, serve: Serve) -> Iterator[None]:
    """A socket each of whose connections is served by a thread."""
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
    """A daemon: VM with these members, and answers by command; anything else is well."""
    known = {"query-vms": returned([VM | {k.replace("_", "-"): v for k, v in members.items()}])}
    known |= answers or {}

    def serve(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        with connection.makefile("rb") as requests:
            for line in requests:
                connection.sendall(known.get(json.loads(line)["execute"], OK))

    return serve


def replies(*messages: bytes) -> Serve:
    """Say each message: the first at once, the others one a request; then hang up."""

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
    """Say something, and then something else without end."""

    def serve(connection: socket.socket) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(again)

    return serve


@contextmanager
def full_backlog(path: Path) -> Iterator[None]:
    """A socket that accepts nobody any more."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        yield


def nobody_listens(path: Path) -> None:
    """Leave a socket behind that nobody listens on."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

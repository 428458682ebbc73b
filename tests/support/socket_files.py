"""Makes a socket's file, and acts before or after a system call on the way."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.end_to_end import open_fds
from tests.support.hostile.tampering import Found
from vhost_balloon.errors import OperatorError
from vhost_balloon.service import listeners
from vhost_balloon.service.listeners import SocketOptions
from vhost_balloon.service.socket_file import SocketFile

OPEN = SocketOptions(0o666)


@contextmanager
def listen(path: Path, access: SocketOptions = OPEN) -> Iterator[SocketFile]:
    """The daemon's socket; no descriptor stays open."""
    sock, file = listeners.listen(path, access)
    with sock:
        yield file
        file.close()


def refusal(path: Path, access: SocketOptions = OPEN) -> str:
    """The reason why it cannot listen; nothing in the folder changes, no descriptor stays open."""
    before, opened = Found.below(path.parent), open_fds()
    with pytest.raises(OperatorError) as failure:
        listeners.listen(path, access)
    assert Found.below(path.parent) == before
    assert open_fds() == opened
    assert "\n" not in str(failure.value)
    return str(failure.value)


def before_call(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], None]) -> None:
    """Have something happen once, just before a method of the socket is called."""
    real = getattr(socket.socket, name)

    def acting(sock: socket.socket, *arguments: object) -> object:
        monkeypatch.undo()
        act()
        return real(sock, *arguments)

    monkeypatch.setattr(socket.socket, name, acting, raising=False)


def after_call(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], None]) -> None:
    """... just after."""
    real = getattr(socket.socket, name)

    def acting(sock: socket.socket, *arguments: object) -> object:
        monkeypatch.undo()
        try:
            return real(sock, *arguments)
        finally:
            act()

    monkeypatch.setattr(socket.socket, name, acting, raising=False)

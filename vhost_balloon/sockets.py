"""Where listening sockets come from: a socket unit, the process before this one, or we open them.

What a socket unit opened is the service manager's, and its file is never removed here. What came
back from the descriptor store goes on listening, so that nobody who connected meanwhile is lost.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import trio

from vhost_balloon.fds import OwnedFd
from vhost_balloon.handed_over import HandedOver
from vhost_balloon.listeners import listening_path, open_unix_listener, resume_unix_listener
from vhost_balloon.store import Scope, Store, name_of
from vhost_balloon.vm_settings import SocketOptions


class Sockets:
    """Listening sockets, by path."""

    def __init__(self, store: Store, handed: Mapping[str, HandedOver] | None = None) -> None:
        handed = handed or {}
        self._store = store
        self._named = dict(handed)
        self._open: set[Listening] = set()
        self._handed = {taken.path: taken for taken in handed.values() if taken.path is not None}
        self._left = {
            path: name
            for name, fd in store.left().items()
            if (path := listening_path(fd)) is not None and path.is_socket()
        }

    @contextmanager
    def open(self, path: Path, access: SocketOptions) -> Iterator[Listening]:
        """Listen on path until exit. Raises OperatorError."""
        handed = self._handed.get(path)
        if handed is not None:
            with contextlib.closing(handed.sock):
                yield Listening(handed.listener(), None)
            return
        scope, name = Scope(self._store), self._left.pop(path, None)
        if name is None:
            opened, stored = open_unix_listener(path, access, self._stays), None
        else:
            stored = scope.adopt(name)
            opened = resume_unix_listener(path, stored, self._stays)
        with opened as listener:
            listening = Listening(listener, scope, stored)
            self._open.add(listening)
            try:
                yield listening
            finally:
                self._open.discard(listening)
                listening.close()

    def handed_over(self) -> list[tuple[str, int]]:
        """Names and numbers of the service manager's sockets that are still open."""
        found = [(name, taken.sock.fileno()) for name, taken in self._named.items()]
        return [(name, number) for name, number in found if number >= 0]

    def open_now(self) -> list[tuple[str, int]]:
        """Names and numbers of all listening sockets, for a program that goes on with them."""
        found = self.handed_over()
        for listening in self._open:
            number = listening.listener.socket.fileno()
            found.append((listening.name or f".{number}x", number))
        return found

    def _stays(self) -> bool:
        return self._store.leaving


class Listening:
    """A listening socket; scope is None if the service manager has it anyhow."""

    def __init__(
        self, listener: trio.SocketListener, scope: Scope | None, stored: OwnedFd | None = None
    ) -> None:
        """stored: what the store has of it already."""
        self.listener = listener
        self._scope = scope
        self._stored = stored

    async def keep(self) -> None:
        """Have it outlive this process. Raises FrontEndError if the store is full."""
        if self._scope is not None and self._scope.store.active and self._stored is None:
            fd = OwnedFd(os.dup(self.listener.socket.fileno()))
            self._stored = await self._scope.keep(fd)

    @property
    def name(self) -> str | None:
        """What the store knows it by."""
        return None if self._stored is None else name_of(self._stored)

    def close(self) -> None:
        """It does not listen any more."""
        if self._stored is not None and self._scope is not None:
            self._stored.close()
            if not self._scope.store.leaving:
                self._scope.flush()

"""Where listening sockets come from: a socket unit, the process before this one, or we open them.

What a socket unit opened is the service manager's, and its file is never touched here. What came
back from the descriptor store goes on listening, so that nobody who connected meanwhile is lost;
its name there has the identity of its file, which a socket cannot be asked for.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from vhost_balloon.errors import OperatorError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.handed_over import HandedOver
from vhost_balloon.listeners import change_access, listen, listening_path
from vhost_balloon.log import logger
from vhost_balloon.socket_file import SocketFile
from vhost_balloon.store import NOTE, Scope, Store, name_of
from vhost_balloon.vm_settings import SocketOptions

_IDENTITY: Final = re.compile(f"{NOTE}([0-9a-f]+),([0-9a-f]+)")


class Sockets:
    """Listening sockets, by path."""

    def __init__(self, store: Store, handed: Mapping[str, HandedOver] | None = None) -> None:
        handed = handed or {}
        self._store = store
        self._named = dict(handed)
        self._open: set[Listening] = set()
        self._handed = {taken.path: taken for taken in handed.values() if taken.path is not None}
        self._left = {left.path: left for left in _left(store)}

    @contextmanager
    def open(self, path: Path, access: SocketOptions) -> Iterator[Listening]:
        """Listen on path until exit. Raises OperatorError."""
        handed = self._handed.get(path)
        if handed is not None:
            with contextlib.closing(handed.sock):
                yield Listening(handed.sock)
            return
        listening = self._resume(path, access)
        if listening is None:
            sock, file = listen(path, access)
            listening = Listening(sock, file, Scope(self._store))
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
        found += [(each.name, each.listener.socket.fileno()) for each in self._open]
        return found

    def sweep(self) -> None:
        """Forget what was left and is not listened on again: the store drops it. Removes its
        files."""
        for left in self._left.values():
            if left.file is not None:
                left.file.remove()
                left.file.close()
        self._left.clear()

    def _resume(self, path: Path, access: SocketOptions) -> Listening | None:
        """Go on listening on path, if the process before this one did."""
        left = self._left.pop(path, None)
        if left is None:
            return None
        scope = Scope(self._store)
        stored = scope.adopt(left.name)
        if self._store.active:
            sock = socket.socket(fileno=os.dup(stored.fileno()))
            listening = Listening(sock, left.file, scope, stored)
        else:
            sock = socket.socket(fileno=stored.detach())
            listening = Listening(sock, left.file, scope)
        if left.file is not None:
            try:
                listening.set_access(access)
            except OperatorError as error:
                logger.warning("%s", error)  # those who connect to it wait: no reason to end
        return listening


class Listening:
    """A listening socket; scope is None if the service manager has it anyhow."""

    def __init__(
        self,
        sock: socket.socket,
        file: SocketFile | None = None,
        scope: Scope | None = None,
        stored: OwnedFd | None = None,
    ) -> None:
        """file: None if it is not known to be ours. stored: what the store has of it already."""
        self.listener: Final = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        self._file = file
        self._scope = scope
        self._stored = stored

    async def keep(self) -> None:
        """Have it outlive this process. Raises FrontEndError if the store is full."""
        if self._scope is not None and self._scope.store.active and self._stored is None:
            fd = OwnedFd(os.dup(self.listener.socket.fileno()))
            self._stored = await self._scope.keep(fd, note=self._note)

    @property
    def name(self) -> str:
        """What the store, or a program that goes on with it, knows it by."""
        known = None if self._stored is None else name_of(self._stored)
        return known or f".{self.listener.socket.fileno()}x{self._note}"

    @property
    def _note(self) -> str:
        if self._file is None:
            return ""
        device, inode = self._file.identity
        return f"{NOTE}{device:x},{inode:x}"

    def set_access(self, access: SocketOptions) -> None:
        """Change who may connect. Raises OperatorError."""
        if self._scope is None:
            raise OperatorError("its socket is the service manager's, and so are its permissions")
        if self._file is None:
            raise OperatorError(
                "an older version opened its socket: its permissions change with the next start "
                "that opens it anew"
            )
        change_access(self._file, access)

    def close(self) -> None:
        """Listen no more, and remove the file, unless the process after this one goes on."""
        assert self._scope is not None
        stays = self._scope.store.leaving
        if self._file is not None:
            if not stays:
                self._file.remove()
            self._file.close()
        if self._stored is not None:
            self._stored.close()
            if not stays:
                self._scope.flush()
        self.listener.socket.close()


@dataclass(frozen=True, slots=True)
class _Left:
    """A listening socket that was left. file: None if it is not known to be that socket's."""

    path: Path
    name: str
    file: SocketFile | None


def _left(store: Store) -> Iterator[_Left]:
    """Listening sockets that were left and can still be connected to."""
    for name, fd in store.left().items():
        path = listening_path(fd)
        if path is None:
            continue
        noted = _IDENTITY.search(name)
        identity = None if noted is None else (int(noted[1], 16), int(noted[2], 16))
        try:
            file = SocketFile.at(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            logger.warning("%s cannot be looked at: %s", path, error.strerror)
            yield _Left(path, name, None)
            continue
        if identity is not None and file.identity == identity:
            yield _Left(path, name, file)
            continue
        # A name of an older version has no identity: any socket may be its.
        is_socket = file.is_socket()
        file.close()
        if identity is None and is_socket:
            yield _Left(path, name, None)

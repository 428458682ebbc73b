"""Listening sockets: handed over by a socket unit, left by the previous process, or opened here.

A socket unit's sockets belong to the service manager: their files are never touched here. Sockets
from the descriptor store continue to listen, so that no client that connected meanwhile is lost;
their names in the store contain the identity of their files, which a socket cannot tell.
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
from vhost_balloon.log.lines import logger
from vhost_balloon.service.handed_over import HandedOver
from vhost_balloon.service.listeners import SocketOptions, change_access, listen, listening_path
from vhost_balloon.service.socket_file import SocketFile
from vhost_balloon.store.descriptors import LISTENER, Store

_NAME: Final = re.compile(re.escape(LISTENER) + "[0-9]+@([0-9a-f]+),([0-9a-f]+)")
"""A number, then device and inode of the file."""


class Sockets:
    """Listening sockets, by path."""

    def __init__(self, store: Store, handed: Mapping[str, HandedOver] | None = None) -> None:
        self._store = store
        self._named = dict(handed or {})
        self._handed = {taken.path: taken for taken in self._named.values() if taken.path}
        self._left = {left.path: left for left in _left(store)}

    @contextmanager
    def open(self, path: Path, access: SocketOptions) -> Iterator[Listening]:
        """Listen on path until exit. Raises OperatorError."""
        handed = self._handed.get(path)
        if handed is not None:
            with contextlib.closing(handed.sock):
                yield Listening(handed.sock)
            return
        listening = self._reuse(path, access)
        if listening is None:
            sock, file = listen(path, access)
            device, inode = file.identity
            name = f"{LISTENER}{self._store.new_number(LISTENER)}@{device:x},{inode:x}"
            listening = Listening(sock, self._store, name, file)
        try:
            yield listening
        finally:
            listening.close()

    def handed_over(self) -> dict[str, int]:
        """The service manager's sockets that are still open: descriptors by name."""
        found = {name: taken.sock.fileno() for name, taken in self._named.items()}
        return {name: number for name, number in found.items() if number >= 0}

    async def sweep(self) -> None:
        """Drop sockets that were left and are not used again, and remove their files."""
        for left in self._left.values():
            if left.file is not None:
                left.file.remove()
                left.file.close()
            await self._store.remove(left.name)
        self._left.clear()

    def _reuse(self, path: Path, access: SocketOptions) -> Listening | None:
        """Continue to listen on path, if the previous process did."""
        left = self._left.pop(path, None)
        if left is None:
            return None
        stored = self._store.take(left.name)
        assert stored is not None
        sock = socket.socket(fileno=os.dup(stored.fileno()))
        listening = Listening(sock, self._store, left.name, left.file, stored)
        if left.file is not None:
            try:
                listening.set_access(access)
            except OperatorError as error:
                logger.warning("%s", error)  # not fatal: clients are waiting
        return listening


class Listening:
    """A listening socket. store: None if the socket is the service manager's."""

    def __init__(
        self,
        sock: socket.socket,
        store: Store | None = None,
        name: str = "",
        file: SocketFile | None = None,
        stored: OwnedFd | None = None,
    ) -> None:
        """name: in the store. file: None if it is not known to be ours. stored: the descriptor that
        the store has already."""
        self.listener: Final = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        self._store = store
        self._name = name
        self._file = file
        self._stored = stored

    async def keep(self) -> None:
        """Store it for the next process."""
        if self._store is not None and self._stored is None:
            self._stored = OwnedFd(os.dup(self.listener.socket.fileno()))
            await self._store.keep(self._name, self._stored)

    def set_access(self, access: SocketOptions) -> None:
        """Change who may connect. Raises OperatorError."""
        if self._store is None:
            raise OperatorError("its socket and permissions belong to the service manager")
        if self._file is None:
            raise OperatorError("its socket's file cannot be opened")
        change_access(self._file, access)

    def close(self) -> None:
        """Stop listening; remove the file unless the next process continues."""
        assert self._store is not None
        if self._file is not None:
            if not self._store.active:
                self._file.remove()
            self._file.close()
        if self._stored is not None:
            self._stored.close()
        self.listener.socket.close()


@dataclass(frozen=True, slots=True)
class _LeftSocket:
    """A listening socket that was left. file: None if it cannot be opened."""

    path: Path
    name: str
    file: SocketFile | None


def _left(store: Store) -> Iterator[_LeftSocket]:
    """Listening sockets that were left and whose files are still in place."""
    for name in store.left(LISTENER):
        path, noted = listening_path(store.look(name)), _NAME.match(name)
        if path is None or noted is None:
            continue
        try:
            file = SocketFile.at(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            logger.warning("cannot open %s: %s", path, error.strerror)
            yield _LeftSocket(path, name, None)
            continue
        if file.identity == (int(noted[1], 16), int(noted[2], 16)):
            yield _LeftSocket(path, name, file)
        else:
            file.close()

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
from vhost_balloon.log.lines import logger
from vhost_balloon.service.handed_over import HandedOver
from vhost_balloon.service.listeners import SocketOptions, change_access, listen, listening_path
from vhost_balloon.service.socket_file import SocketFile
from vhost_balloon.store.descriptors import LISTENER, Store

_NAME: Final = re.compile(re.escape(LISTENER) + "[0-9]+@([0-9a-f]+),([0-9a-f]+)")
"""A number, and device and inode of its file."""


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
        listening = self._resume(path, access)
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
        """The service manager's sockets that are still open, by name."""
        found = {name: taken.sock.fileno() for name, taken in self._named.items()}
        return {name: number for name, number in found.items() if number >= 0}

    async def sweep(self) -> None:
        """Forget what was left and is not listened on again, and remove its files."""
        for left in self._left.values():
            if left.file is not None:
                left.file.remove()
                left.file.close()
            await self._store.remove(left.name)
        self._left.clear()

    def _resume(self, path: Path, access: SocketOptions) -> Listening | None:
        """Go on listening on path, if the process before this one did."""
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
                logger.warning("%s", error)  # those who connect to it wait: no reason to end
        return listening


class Listening:
    """A listening socket. store: None if the service manager has it anyhow."""

    def __init__(
        self,
        sock: socket.socket,
        store: Store | None = None,
        name: str = "",
        file: SocketFile | None = None,
        stored: OwnedFd | None = None,
    ) -> None:
        """name: what the store knows it by. file: None if it is not known to be ours. stored: what
        the store has of it already."""
        self.listener: Final = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        self._store = store
        self._name = name
        self._file = file
        self._stored = stored

    async def keep(self) -> None:
        """Have it outlive this process."""
        if self._store is not None and self._stored is None:
            self._stored = OwnedFd(os.dup(self.listener.socket.fileno()))
            await self._store.keep(self._name, self._stored)

    def set_access(self, access: SocketOptions) -> None:
        """Change who may connect. Raises OperatorError."""
        if self._store is None:
            raise OperatorError("its socket is the service manager's, and so are its permissions")
        if self._file is None:
            raise OperatorError("its socket's file is not to be had")
        change_access(self._file, access)

    def close(self) -> None:
        """Listen no more, and remove the file, unless the process after this one goes on."""
        assert self._store is not None
        if self._file is not None:
            if not self._store.active:
                self._file.remove()
            self._file.close()
        if self._stored is not None:
            self._stored.close()
        self.listener.socket.close()


@dataclass(frozen=True, slots=True)
class _Left:
    """A listening socket that was left. file: None if it is not known to be that socket's."""

    path: Path
    name: str
    file: SocketFile | None


def _left(store: Store) -> Iterator[_Left]:
    """Listening sockets that were left and can still be connected to."""
    for name in store.left(LISTENER):
        path, noted = listening_path(store.look(name)), _NAME.match(name)
        if path is None or noted is None:
            continue
        try:
            file = SocketFile.at(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            logger.warning("%s cannot be looked at: %s", path, error.strerror)
            yield _Left(path, name, None)
            continue
        if file.identity == (int(noted[1], 16), int(noted[2], 16)):
            yield _Left(path, name, file)
        else:
            file.close()

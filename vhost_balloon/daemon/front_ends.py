"""Serves one front end after another: first the one that was left, then each that connects.

While one is attached none is accepted; the next waits in the listening socket's backlog. A
connection is in the store from before it is served until after it has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from vhost_balloon.checked import Document
from vhost_balloon.fds import SHORTAGE, OwnedFd, spare_descriptors
from vhost_balloon.front_end.connection import serve_front_end
from vhost_balloon.log.lines import Shortage
from vhost_balloon.restart.revival import revive_front_end
from vhost_balloon.store.descriptors import CONNECTION
from vhost_balloon.vm.vm import Vm

DESCRIPTORS: Final = 64
"""Descriptors that a front end needs: memory, eventfds and an epoll for each, its folder in /proc;
and the same again while messages replace them."""

ACCEPT_PAUSE: Final = 0.1
"""Seconds to wait when this process or the host is short of descriptors or memory."""


class FrontEnds:
    """Serves the front ends of a VM. listener: None if the only one is connected already."""

    def __init__(self, vm: Vm, listener: trio.SocketListener | None) -> None:
        self.is_arriving = True
        """A front end was accepted, or may have been left, but is not attached yet."""
        self._vm = vm
        self.listener = listener
        vm.next_waits = self._next_waits
        self._shortage: Final = Shortage()

    async def run(
        self, areas: Document | None, connected: OwnedFd | None, ready: Callable[[], None]
    ) -> None:
        """Serve until cancelled, or without a listener until the front end goes.

        areas: the documents that were left. connected: the front end of --fd, if it was not left.
        ready is called once the front end that was left is served again.
        """

        def attached() -> None:
            self.is_arriving = False
            ready()

        await revive_front_end(self._vm, areas, attached)
        if connected is not None:
            await self._serve(connected, peer_connected=False)
        while self.listener is not None:
            fd = await self._accept(self.listener)
            if fd is not None:
                await self._serve(fd, peer_connected=True)

    async def _accept(self, listener: trio.SocketListener) -> OwnedFd | None:
        """The next front end, or None if it has to wait."""
        # Not accept() alone: other tasks may run between its system call and its return.
        await trio.lowlevel.wait_readable(listener.socket.fileno())
        self.is_arriving = True
        try:
            with spare_descriptors(DESCRIPTORS):
                pass  # without them it would attach and then lose its device
            stream = await listener.accept()
        except OSError as error:
            self.is_arriving = False
            if error.errno not in SHORTAGE:
                raise
            self._shortage.met(error, "front end", self._vm.id)
            await trio.sleep(ACCEPT_PAUSE)
            return None
        except BaseException:
            self.is_arriving = False
            raise
        return OwnedFd(stream.socket.detach())

    async def _serve(self, fd: OwnedFd, *, peer_connected: bool) -> None:
        name = f"{CONNECTION}{self._vm.store.new_number(CONNECTION)}"
        try:
            # --fd may be any kind of socket: the service manager must not touch it.
            await self._vm.store.keep(name, fd, is_ours=peer_connected)
            await serve_front_end(self._vm, fd, name, peer_connected=peer_connected)
        finally:
            self.is_arriving = False

    async def _next_waits(self) -> None:
        """Wait until another front end waits in the backlog."""
        if self.listener is None:
            await trio.sleep_forever()
        else:
            await trio.lowlevel.wait_readable(self.listener.socket.fileno())

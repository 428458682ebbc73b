"""Front ends that, to the daemon, appear to live in their own processes.

Hundreds of simulated VMs in one process would look to the daemon like one QEMU with thousands of
descriptors, all of which it checks for pinned memory, for every VM.
"""

from __future__ import annotations

import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import trio

from tests.benchmarks.programs.compiled import program
from vhost_balloon.simulator.front_end import FrontEnd
from vhost_balloon.simulator.guest import SimulatedGuest
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.options import DriverOptions

DESCRIPTORS: Final = 60
"""Roughly the number a QEMU with a disk and a network card has open."""


class NotConnected(Exception):
    """The stand-in could not connect."""


@asynccontextmanager
async def stood_in_guest(
    path: Path, ram: int, options: DriverOptions
) -> AsyncIterator[SimulatedGuest]:
    """Run a simulated guest of ram bytes behind its own process; see running_guest."""
    async with _connection(path) as sock:
        with GuestRam.create(ram) as memory:
            async with FrontEnd(sock, memory) as front_end, trio.open_nursery() as nursery:
                guest = SimulatedGuest(front_end, nursery, options)
                await guest.boot()
                yield guest
                nursery.cancel_scope.cancel()


@asynccontextmanager
async def _connection(path: Path) -> AsyncIterator[trio.socket.SocketType]:
    """Connect to the socket at path through another process that lives as long."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            stand_in = _start(path, theirs)
        try:
            _, fds, _, _ = socket.recv_fds(ours, 1, 1)
            if not fds:
                raise NotConnected(str(path))
            yield trio.socket.from_stdlib_socket(socket.socket(fileno=fds[0]))
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            stand_in.wait(10)


def _start(path: Path, standard_input: socket.socket) -> subprocess.Popen[bytes]:
    command = [str(program("stand_in")), str(path), str(DESCRIPTORS)]
    return subprocess.Popen(command, stdin=standard_input.fileno())

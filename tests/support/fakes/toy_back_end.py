"""The smallest back end that works for a simulated guest, for the simulator's tests.

It records every message, replies as the specification demands, and finishes requests immediately.
It reads RAM only through the descriptors that it received, and takes its numbers from the text of
the specification, not from `protocol`.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import trio
import trio.testing

from vhost_balloon.simulator.front_end import FrontEnd
from vhost_balloon.simulator.guest import SimulatedGuest
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.options import DriverOptions
from vhost_balloon.simulator.wire import BackEndGone, Message, receive_message

QUIET = DriverOptions(report_delay=None)
MIB = 1 << 20
OFFERED = 0x1_7000_003F & ~(1 << 29)  # bits 0-5, 28, 30, 32
PROTOCOL = 1 << 0 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 13 | 1 << 15 | 1 << 16
Descriptor = tuple[int, int, int]
"""Address, length, flags."""


@dataclass
class ToyRing:
    """A back end's state of one ring."""

    size: int = 0
    base: int = 0
    addresses: tuple[int, int, int] = (0, 0, 0)  # descriptors, used, available
    kick: int = -1
    call: int = -1
    err: int = -1
    enabled: bool = False
    done: list[list[Descriptor]] = field(default_factory=list)


class ToyBackEnd:
    """The back end of one connection.

    `hold` contains the rings whose requests stay unfinished until `process` is called: at first the
    statistics ring, as the driver returns its buffer each time.
    """

    def __init__(self, sock: trio.socket.SocketType, *, offered: int, protocol: int) -> None:
        self.offered = offered
        self.protocol = protocol
        self.messages: list[Message] = []
        self.config = bytearray(16)
        self.rings = [ToyRing() for _ in range(5)]
        self.regions: list[tuple[int, int, int, int, int]] = []  # gpa, size, user, offset, fd
        self.refuse: dict[int, int] = {}
        self.hold = {2}
        self._sock = sock
        self._channel: socket.socket | None = None
        self._fds: list[int] = []
        self._progress = trio.Event()

    @property
    def requests(self) -> list[int]:
        return [message.request for message in self.messages]

    async def serve(self) -> None:
        """Reply to messages until the front end disconnects."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    message = await receive_message(self._sock)
                    self._fds += message.fds
                    self.messages.append(message)
                    await self._answer(message, nursery)
        except* BackEndGone:  # here, the front end has gone
            pass

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        if self._channel is not None:
            self._channel.close()
        self._sock.close()

    def set_target(self, pages: int) -> None:
        """Change num_pages and send CONFIG_CHANGE_MSG, with need_reply."""
        self.config[0:4] = struct.pack("<I", pages)
        assert self._channel is not None
        self._channel.sendall(struct.pack("<III", 2, 0x9, 0))

    def channel_reply(self) -> bytes:
        """Return the front end's data on the back-end channel since the last call."""
        assert self._channel is not None
        data = b""
        with suppress(BlockingIOError):
            while part := self._channel.recv(4096, socket.MSG_DONTWAIT):
                data += part
        return data

    def process(self, index: int) -> None:
        """Finish all available requests of a ring, and signal its call eventfd."""
        ring = self.rings[index]
        while ring.base != (available := self._word(ring.addresses[2] + 2)):
            assert (available - ring.base) & 0xFFFF <= ring.size
            head = self._word(ring.addresses[2] + 4 + 2 * (ring.base % ring.size))
            ring.done.append(self._chain(ring.addresses[0], head))
            element = ring.addresses[1] + 4 + 8 * (ring.base % ring.size)
            self.write_user(element, struct.pack("<II", head, 0))
            ring.base = (ring.base + 1) & 0xFFFF
            self.write_user(ring.addresses[1] + 2, struct.pack("<H", ring.base))
        os.eventfd_write(ring.call, 1)
        self._progress.set()

    async def finished(self, index: int) -> None:
        """Wait until a request of ring `index` has been finished."""
        while not self.rings[index].done:
            await self._progress.wait()
            self._progress = trio.Event()

    def read_guest(self, address: int, length: int) -> bytes:
        for start, size, _, offset, fd in self.regions:
            if start <= address < start + size:
                return os.pread(fd, length, offset + address - start)
        raise AssertionError(f"{address:#x} is in no region")

    def write_user(self, address: int, data: bytes) -> None:
        fd, offset = self._locate(address)
        os.pwrite(fd, data, offset)

    def _locate(self, user: int) -> tuple[int, int]:
        for _, size, start, offset, fd in self.regions:
            if start <= user < start + size:
                return fd, offset + user - start
        raise AssertionError(f"{user:#x} is in no region")

    def _word(self, user: int) -> int:
        fd, offset = self._locate(user)
        return int.from_bytes(os.pread(fd, 2, offset), "little")

    def _chain(self, table: int, slot: int) -> list[Descriptor]:
        """Read a chain. A table has a user address, an indirect table a guest address."""
        chain: list[Descriptor] = []
        fd, offset = self._locate(table)
        while True:
            data = os.pread(fd, 16, offset + 16 * slot)
            address, length, flags, slot = struct.unpack("<QIHH", data)
            if flags & 4:
                entries = struct.iter_unpack("<QIHH", self.read_guest(address, length))
                return [(entry[0], entry[1], entry[2]) for entry in entries]
            chain.append((address, length, flags))
            if not flags & 1:
                return chain

    async def _answer(self, message: Message, nursery: trio.Nursery) -> None:
        payload = message.payload
        reply = {
            1: struct.pack("<Q", self.offered),
            15: struct.pack("<Q", self.protocol),
            17: struct.pack("<Q", 5),
            24: payload[:12] + self.config,
            36: struct.pack("<Q", 509),
            40: struct.pack("<Q", 0),
        }.get(message.request)
        if message.request == 11:
            index = payload[0]
            self.rings[index].kick = -1
            reply = struct.pack("<II", index, self.rings[index].base)
        self._obey(message, nursery)
        if reply is None and message.flags & 8:
            reply = struct.pack("<Q", self.refuse.get(message.request, 0))
        if reply is not None:
            await self._sock.send(struct.pack("<III", message.request, 5, len(reply)) + reply)

    def _obey(self, message: Message, nursery: trio.Nursery) -> None:
        payload, fds = message.payload, message.fds
        match message.request:
            case 21:
                self._channel = socket.socket(fileno=os.dup(fds[0]))
            case 25:
                self.config[4:8], self.config[12:16] = payload[16:20], payload[24:28]
            case 37:
                self._add_region(payload[8:], fds[0])
            case 5:
                self.regions.clear()
                for index, fd in enumerate(fds):
                    self._add_region(payload[8 + 32 * index :], fd)
            case 8 | 10 | 18:
                index, value = struct.unpack("<II", payload)
                name = {8: "size", 10: "base", 18: "enabled"}[message.request]
                setattr(self.rings[index], name, value)
                if message.request == 18 and value and self.rings[index].kick >= 0:
                    nursery.start_soon(self._run_ring, index, self.rings[index].kick)
            case 9:
                index, _, descriptors, used, available = struct.unpack_from("<IIQQQ", payload)
                self.rings[index].addresses = (descriptors, used, available)
            case 12 | 13 | 14:
                name = {12: "kick", 13: "call", 14: "err"}[message.request]
                setattr(self.rings[payload[0]], name, fds[0])
                if message.request == 13 and self.rings[payload[0]].kick >= 0:
                    os.eventfd_write(fds[0], 1)  # the old one may have been signalled

    def _add_region(self, payload: bytes, fd: int) -> None:
        address, size, user, offset = struct.unpack_from("<QQQQ", payload)
        self.regions.append((address, size, user, offset, fd))

    async def _run_ring(self, index: int, kick: int) -> None:
        ring = self.rings[index]
        while ring.kick == kick and ring.enabled:
            if index not in self.hold:
                self.process(index)
            await trio.lowlevel.wait_readable(kick)
            if ring.kick == kick:
                os.eventfd_read(kick)


@asynccontextmanager
async def toy_back_end(
    offered: int = OFFERED, protocol: int = PROTOCOL
) -> AsyncIterator[tuple[ToyBackEnd, trio.socket.SocketType]]:
    """Run a toy back end. Also yield the front end's socket."""
    theirs, ours = trio.socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    back_end = ToyBackEnd(ours, offered=offered, protocol=protocol)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(back_end.serve)
        try:
            yield back_end, theirs
        finally:
            nursery.cancel_scope.cancel()
    back_end.close()


@asynccontextmanager
async def attached(
    ram: GuestRam | None = None, offered: int = OFFERED, protocol: int = PROTOCOL
) -> AsyncIterator[tuple[FrontEnd, ToyBackEnd]]:
    """Connect a front end, by default with 16 MiB of RAM, to a toy back end."""
    with ram or GuestRam.create(16 * MIB) as memory:
        async with toy_back_end(offered, protocol) as (back_end, sock), FrontEnd(sock, memory) as f:
            yield f, back_end


@asynccontextmanager
async def booted(
    options: DriverOptions = QUIET, ram: GuestRam | None = None, offered: int = OFFERED
) -> AsyncIterator[tuple[SimulatedGuest, ToyBackEnd]]:
    """Boot a guest on a toy back end. By default it does not report free pages."""
    async with attached(ram, offered) as (front_end, back_end), trio.open_nursery() as nursery:
        guest = SimulatedGuest(front_end, nursery, options)
        await guest.boot()
        await (
            trio.testing.wait_all_tasks_blocked()
        )  # everything is received, and the target reached
        yield guest, back_end
        nursery.cancel_scope.cancel()

"""Target: arbitrary bytes and descriptors from a front end, against the real back end."""

from __future__ import annotations

import array
import json
import os
import socket
from pathlib import Path
from typing import Final

import trio
from trio.testing import MockClock

from tests.fuzz.descriptors import KINDS, MEMORY_SIZE, open_descriptor
from tests.fuzz.owed import Owed
from tests.fuzz.requests import SEQUENCES, TEMPLATES, Sent, plain
from tests.fuzz.rings_by_hand import DriverMemory
from tests.fuzz.source import Source
from vhost_balloon.control.report import describe_vm
from vhost_balloon.fds import OwnedFd
from vhost_balloon.figures.discard_policy import DiscardMode, DiscardPolicy
from vhost_balloon.front_end.connection import serve_front_end
from vhost_balloon.store.descriptors import CONNECTION
from vhost_balloon.store.shelf import Shelf
from vhost_balloon.vm.settings import VmSettings
from vhost_balloon.vm.vm import Vm

INVARIANT: Final = (
    "Whatever bytes and descriptors a front end sends, each request that has a reply gets exactly "
    "one, well-formed, until the connection ends for bytes that cannot be parsed; nothing else "
    "escapes, and no descriptor or mapping is left behind."
)
LONGEST: Final = 3600.0
"""Time limit in seconds on the autojump clock; anything longer counts as a hang."""

NAME: Final = f"{CONNECTION}1"
_FLAGS: Final = (1, 1, 1, 9, 9, 9, 9, 5, 13, 1, 9, 1, 9, 1, 9, 9)


def _count(number: int) -> int:
    """A number of descriptors; seldom more than any message may have."""
    return number % 20 if number > 240 else number % 9


class FrontEnd:
    """Plays the steps that a Source decides, one per decision."""

    def __init__(self, source: Source, sock: trio.socket.SocketType, vm: Vm) -> None:
        self.source = source
        self.owed = Owed()
        self._sock = sock
        self._vm = vm
        self._memory_fd = os.memfd_create("fuzz-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._memory_fd, MEMORY_SIZE)
        self._memory = DriverMemory(self._memory_fd)
        self._channel = socket.socketpair()
        self._kicks: list[int] = []

    def close(self) -> None:
        for end in self._channel:
            end.close()
        for fd in (self._memory_fd, *self._kicks):
            os.close(fd)

    async def play(self) -> None:
        """Send everything, then end the stream; an early hang-up by the back end needs a reason."""
        try:
            while self.source and not self.owed.ended:
                await self._step()
            if self.owed.between_messages:
                await self._send(plain(1))  # GET_FEATURES: it still answers
        except (BrokenPipeError, ConnectionResetError):
            assert self.owed.ended, "the back end hung up on a well-formed stream"
        else:
            self._sock.shutdown(socket.SHUT_WR)

    async def _step(self) -> None:
        source = self.source
        match source.number() % 8:
            case 0 | 1:
                await self._template()
            case 2:
                for sent in source.pick(SEQUENCES)(source.number() % 5):
                    await self._send(sent)
            case 3:
                flags, request = source.pick(_FLAGS), source.number()
                kinds = tuple(source.number() for _ in range(_count(source.number())))
                await self._send(Sent(request, source.some(source.number()), kinds, flags))
            case 4:
                data, number = source.some(source.number()), source.number()
                kinds = (number,) * max(_count(number), 1)
                await self._send_bytes(data, kinds if source.rarely() else ())
            case 5:
                self._memory.scribble(source)
                await self._turns(1)
            case 6:
                self._memory.offer(source)
                for kick in self._kicks:
                    os.eventfd_write(kick, 1)
                await self._turns(3)
            case _:
                self._operator()

    async def _template(self) -> None:
        """Send a valid request, sometimes with one byte or its descriptors changed."""
        source = self.source
        sent = source.pick(TEMPLATES)(source.number() % 6, source)
        sent = sent._replace(flags=source.pick(_FLAGS))
        if source.rarely():
            payload, at = bytearray(sent.payload), source.number()
            payload[at : at + 1] = source.some(1 + source.number() % 3)
            sent = sent._replace(payload=bytes(payload))
        if source.rarely():
            sent = sent._replace(kinds=tuple(source.some(source.number() % 9)))
        if source.rarely():
            sent = sent._replace(payload=sent.payload + bytes(source.number(3) % 100_000))
        await self._send(sent)

    def _operator(self) -> None:
        """Send operator commands and queries at any time."""
        order = self.source.number() % 4
        if order == 0 and self._vm.attached:
            self._vm.device().set_target(1 + self.source.number(3))
        elif order == 1:
            self._vm.paused = not self._vm.paused
        json.dumps(describe_vm(self._vm.statistics()))

    async def _send(self, sent: Sent) -> None:
        await self._send_bytes(sent.message(), sent.kinds)

    async def _send_bytes(self, data: bytes, kinds: tuple[int, ...]) -> None:
        fds: list[int] = []
        try:
            for number in kinds if data else ():
                fds.append(self._open(KINDS[number % len(KINDS)]))
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
            sent = await self._sock.sendmsg([data], rights if fds else []) if data else 0
            self.owed.sent(data[:sent], len(fds))
            while sent < len(data):
                part = await self._sock.send(data[sent:])
                self.owed.sent(data[sent : sent + part], 0)
                sent += part
        finally:
            for fd in fds:
                os.close(fd)
        await self._turns(1)

    def _open(self, kind: str) -> int:
        fd = open_descriptor(kind, self._memory_fd, self._channel[0].fileno())
        if kind == "eventfd":
            self._kicks.append(os.dup(fd))
        return fd

    async def _turns(self, count: int) -> None:
        for _ in range(count):
            await trio.lowlevel.checkpoint()


async def _converse(source: Source) -> tuple[Owed, bytes]:
    """Play against a served VM; return the replies owed and all bytes received."""
    settings = VmSettings(
        offered=(1 << 6) - 1,
        policy=DiscardPolicy(DiscardMode.ALWAYS, other_filesystems=True),
        stats_interval=float(source.number() % 2),
    )
    vm = Vm("fuzz", settings, Path("/fuzz"))
    vm.shelf = Shelf.create()
    ours, theirs = trio.socket.socketpair()
    front_end = FrontEnd(source, ours, vm)
    received = bytearray()
    try:
        with trio.fail_after(LONGEST):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_front_end, vm, OwnedFd(theirs.detach()), NAME)
                await trio.lowlevel.checkpoint()
                nursery.start_soon(front_end.play)
                while part := await _receive(ours):
                    received += part
        assert not vm.shelf.users, "descriptors are left on the shelf"
    finally:
        front_end.close()
        ours.close()
        vm.close()
    assert not vm.attached
    return front_end.owed, bytes(received)


async def _receive(sock: trio.socket.SocketType) -> bytes:
    try:
        return await sock.recv(65536)
    except ConnectionResetError:  # it closed without reading all our bytes
        return b""


def _held() -> tuple[int, int]:
    """Count open descriptors and mappings of guest memory."""
    with open("/proc/self/maps", "rb") as maps:
        mappings = maps.read().count(b"fuzz-memory")
    return len(os.listdir("/proc/self/fd")), mappings


def run(data: bytes) -> None:
    before = _held()
    owed, received = trio.run(_converse, Source(data), clock=MockClock(autojump_threshold=0))
    owed.check(received)
    assert _held() == before, "descriptors or mappings are left"


_ORDERS: Final = {
    "hello": b"\2\0\0",
    "start": b"\2\1\0",
    "stop": b"\2\3\0",
    "inflate": b"\6\0\0\0\x90\0\x20\0\x40\0",
    "report": b"\6\4\0\0\xc0\0\0\x10\x42\0",
    "statistics": b"\6\2\0\0\xa0\0\x50\0\x40\0",
    "target": b"\7\0\0\x10\0",
    "pause": b"\7\1",
}
"""Useful step sequences, by their effect."""

SEEDS: Final = (
    b"\0\0",
    b"\0\0" + b"".join(_ORDERS.values()),
    b"\1\0" + b"".join(_ORDERS[name] for name in ("hello", "start", "inflate", "report", "stop")),
    b"\0\0" + _ORDERS["hello"] + bytes(x for n in range(len(TEMPLATES)) for x in (0, n, 0, 0, 3)),
)
TOKENS: Final = (
    *_ORDERS.values(),
    *(bytes((0, number)) for number in range(len(TEMPLATES))),
    *(bytes((step,)) for step in range(8)),
    bytes.fromhex("010000000100000000000000"),
)

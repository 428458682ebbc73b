"""Helpers of restart tests: the daemon under a service manager, and a guest that survives it."""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any, Final
from zlib import crc32

import trio

from protocol.vhost_user import HEADER, VERSION, HeaderFlag, Request
from protocol.virtio_balloon import Queue, StatTag
from tests.rig.errors import GuestError
from tests.rig.qmp import QMPClient
from tests.support.end_to_end import BLOCK, MIB, PAGE, ByHand, by_hand, eventually, fill, is_filled
from tests.support.hostile.bad_requests import descriptors
from tests.support.restarting.service_manager import ServiceManager
from vhost_balloon.simulator.front_end import FrontEnd
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.wire import BackEndGone
from vhost_balloon.store.record import MAGIC

CRASHING: Final = ("-m", "tests.support.restarting.crashing")
GUEST: Final = 64 * MIB
KEPT: Final = 9
"""What a VM without a front end leaves in the store: lock, record, reply pipe, four ends of the
shelf, two listeners. A front end adds its connection."""
PATIENCE: Final = 60.0
"""Seconds for a whole scenario: several starts of the daemon, on a busy machine."""


_BYTES: Final = Random(0).randbytes(200_000)
TOO_MANY: Final[tuple[tuple[int, bytes, list[int]], ...]] = (
    (Request.SET_MEM_TABLE, _BYTES[:264], [9]),
    (Request.RESET_DEVICE, b"", [250]),
    (Request.SET_MEM_TABLE, _BYTES[:264], [5, 5]),
    (Request.ADD_MEM_REG, _BYTES[:40], [8, 1, 1]),
    (Request.SET_STATUS, _BYTES[:8], [1] * 10),
    (1000, _BYTES, [3, 3, 3, 3]),
)
"""Requests and payloads, and the descriptors that come with each part. No two parts are alike:
whether a part was taken before a death is told by its content."""


class Host:
    """A daemon under a service manager, with a control socket; its VM is named vm1."""

    def __init__(self, folder: Path, manager: ServiceManager) -> None:
        self.folder = folder
        self.manager = manager

    def path(self) -> Path:
        return self.folder / "vm1.sock"

    @property
    def control(self) -> Path:
        return self.folder / "control"

    def ask(self, command: str, **arguments: Any) -> Any:
        """Run one command on a new control connection."""
        with QMPClient(self.control) as qmp:
            return qmp.execute(command, {k.replace("_", "-"): v for k, v in arguments.items()})

    def vm(self) -> dict[str, Any]:
        found: dict[str, Any]
        (found,) = self.ask("query-vms")
        return found

    def insist(self, command: str, **arguments: Any) -> Any:
        """Repeat a command until a daemon lives long enough to answer."""
        while True:
            try:
                return self.ask(command, **arguments)
            except (OSError, GuestError):
                self.manager.wait_ready()

    def log(self) -> str:
        return self.manager.log.read_text()


def records(host: Host) -> list[int]:
    return [fd for name, fd in host.manager.stored if name.startswith(".record-")]


def set_version(fd: int, version: int) -> None:
    """Change the version in a record's header."""
    with mmap.mmap(fd, 1024) as page:
        length = int.from_bytes(page[8:12], "little")
        header = json.loads(page[16 : 16 + length]) | {"version": version}
        text = json.dumps(header, separators=(",", ":")).encode()
        page[:16] = MAGIC + len(text).to_bytes(4, "little") + crc32(text).to_bytes(4, "little")
        page[16 : 16 + len(text)] = text


def damage(host: Host) -> None:
    """Overwrite all that is in the records' areas."""
    for fd in records(host):
        size = os.fstat(fd).st_size
        os.pwrite(fd, b"\xa5" * (size - 1024), 1024)


@asynccontextmanager
async def hosting(
    folder: Path,
    *options: str,
    limit: int = 16,
    crashes: Sequence[str] | None = None,
    program: Sequence[str] | None = None,
    environment: dict[str, str] | None = None,
) -> AsyncIterator[Host]:
    """Run the daemon, or program instead; with crashes it is tests.support.restarting.crashing."""
    sockets = [f"--socket-path={folder}/vm1.sock", f"--control-socket={folder}/control"]
    options = ("--stats-interval=0", *options)
    more: dict[str, Any] = {} if program is None else {"program": program}
    if crashes is not None:
        more = {"program": CRASHING, "crashes": crashes}
    with ServiceManager(
        *sockets, *options, limit=limit, environment=environment, **more
    ) as manager:
        try:
            yield Host(folder, manager)
        except BaseException:
            print(manager.log.read_text())  # pytest shows it if the test fails
            raise


class Scenario:
    """Everything that a front end says to a device in its life, with right answers to it all.

    What must keep its content lies in KEPT; requests name pages outside of it.
    """

    KEPT: Final = range(8 * MIB, 24 * MIB)

    def __init__(self, host: Host, guest: ByHand) -> None:
        self.host = host
        self.guest = guest
        self.front_end: FrontEnd = guest.front_end
        self.ram: GuestRam = guest.ram
        self._page = self.KEPT.stop // PAGE

    @classmethod
    async def run(cls, host: Host) -> None:
        """Run it from the connection to the last request."""
        try:
            await cls._run(host)
        except* BackEndGone:
            # A daemon that dies between accepting a connection and storing it loses it; QEMU does
            # not start then, and is started again. Nothing but a first attempt may fail so.
            assert "attached" not in host.log()
            await cls._run(host)

    @classmethod
    async def _run(cls, host: Host) -> None:
        with trio.fail_after(PATIENCE):
            async with by_hand(host.path(), GUEST, features=None) as guest:
                scenario = cls(host, guest)
                fill(guest.ram, cls.KEPT.start, len(cls.KEPT))
                await guest.start()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(scenario.give_statistics)
                    await scenario.orders()
                    nursery.cancel_scope.cancel()
                await scenario.requests()
                await scenario.memory()
                await scenario.refusals()
                await scenario.stop_and_cont()
                await scenario.resets()
                assert is_filled(guest.ram, cls.KEPT.start, len(cls.KEPT))

    async def give_statistics(self) -> None:
        """Answer the device whenever it asks for a sample."""
        while True:
            values = {int(StatTag.MEMFREE): 7 * MIB, int(StatTag.MEMTOT): GUEST}
            await self.guest.rings[Queue.STATS].submit([self.guest.stats(values)])

    async def orders(self) -> None:
        """A target, which the guest is told of and reads; fresh statistics."""
        told = self.guest.config_changes
        self.host.insist("balloon", value=GUEST - 16 * MIB, id="vm1")
        await eventually(lambda: self.guest.config_changes > told, PATIENCE)
        assert struct.unpack("<4I", await self.front_end.get_config())[0] == 16 * MIB // PAGE
        found = await trio.to_thread.run_sync(
            lambda: self.host.insist("balloon-stats", id="vm1", timeout=20)
        )
        assert found["stats"]["stat-free-memory"] == 7 * MIB

    async def requests(self) -> None:
        """All kinds of requests, and the guest's account of them."""
        for done in range(1, 4):
            pages = range(self._page, self._page + 5)
            self._page += 5
            await self.guest.inflate(pages)
            await self.front_end.set_config(slice(4, 8), (5 * done).to_bytes(4, "little"))
            await self.guest.rings[Queue.DEFLATE].submit([self.guest.pfns(pages)])
            await self.guest.report((self._block(), BLOCK), (self._block(), BLOCK))
        assert struct.unpack("<4I", await self.front_end.get_config())[1] == 15

    def _block(self) -> int:
        self._page = -(-self._page * PAGE // BLOCK) * BLOCK // PAGE
        if (self._page * PAGE + 2 * BLOCK) > GUEST:
            self._page = self.KEPT.stop // PAGE
        return self._page * PAGE

    async def memory(self) -> None:
        """A DIMM comes and goes; the whole table is sent."""
        dimm = self.ram.add(16 * MIB, 1 << 32)
        await self.front_end.add_region(dimm)
        await self.guest.report((1 << 32, BLOCK))
        await self.front_end.remove_region(dimm)
        await self.front_end.set_mem_table()
        await self.front_end.remove_region(dimm)
        self.ram.remove(dimm)
        await self.requests()

    async def refusals(self) -> None:
        """Messages with more descriptors than any request has, in one part and in several."""
        for request, payload, counts in TOO_MANY:
            flags = VERSION | HeaderFlag.NEED_REPLY
            data = HEADER.pack(request, flags, len(payload)) + payload
            size = -(-len(data) // len(counts))
            for at, count in enumerate(counts):
                with descriptors(["eventfd"] * count) as fds:
                    await self.front_end.send_raw(data[at * size : (at + 1) * size], fds)
            reply = await self.front_end.receive_reply()
            assert (reply.request, reply.payload[0]) == (request, 1), "it was not refused"

    async def stop_and_cont(self) -> None:
        """The bases are those of the rings, and all goes on at them."""
        indexes = self.guest.indexes
        bases = await self.guest.stop()
        for queue in (Queue.INFLATE, Queue.DEFLATE, Queue.REPORTING):
            assert bases[indexes[queue]] == self.guest.rings[queue].available_index
        await self.guest.start(bases=bases)
        await self.requests()

    async def resets(self) -> None:
        """By request and by status; the driver begins anew, and its balloon is empty."""
        await self.front_end.command(Request.RESET_DEVICE)
        assert (await self.front_end.get_config())[4:8] == bytes(4)
        self.guest.fresh()
        await self.guest.start()
        await self.requests()
        await self.front_end.set_u64(Request.SET_STATUS, 0)
        assert await self.front_end.get_u64(Request.GET_STATUS) == 0
        self.guest.fresh()
        await self.guest.start()
        await self.requests()


async def upgrade(host: Host) -> None:
    """Make the daemon re-execute itself in place, and wait until it serves again."""
    serves = "info: serving"
    before = host.log().count(serves)
    host.manager.process.send_signal(signal.SIGHUP)
    await eventually(lambda: host.log().count(serves) > before)

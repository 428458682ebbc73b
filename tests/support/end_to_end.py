"""Helpers of end-to-end tests: the daemon in this process, and a guest driven by hand.

The daemon is the real one on real sockets, with real memory. `ByHand` is a front end with rings
but without a driver: a test makes each request itself.
"""

from __future__ import annotations

import logging
import math
import os
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
import trio
import trio.testing

from protocol import virtio_balloon as vb
from protocol.virtio_balloon import BalloonFeature, Queue
from tests.support.helpers import MIB as MIB
from tests.support.helpers import PAGE as PAGE
from vhost_balloon import clock
from vhost_balloon.config import config
from vhost_balloon.daemon import daemon
from vhost_balloon.log.lines import TextFormatter
from vhost_balloon.pace import wakefulness
from vhost_balloon.simulator.connection import Connection, Refused
from vhost_balloon.simulator.front_end import FrontEnd
from vhost_balloon.simulator.guest import SimulatedGuest
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.options import RING_FEATURES, Numbering, queue_indexes
from vhost_balloon.simulator.ring import DriverRing, Used
from vhost_balloon.simulator.wire import BackEndGone
from vhost_balloon.vm.vm import Vm

BLOCK: Final = 4 * MIB

QUIET: Final = "--stats-interval=0"
LINUX: Final = int(
    BalloonFeature.MUST_TELL_HOST
    | BalloonFeature.STATS_VQ
    | BalloonFeature.DEFLATE_ON_OOM
    | BalloonFeature.PAGE_REPORTING
    | RING_FEATURES
)
"""The features that Linux negotiates without page poisoning."""


class LogLines(logging.Handler):
    """The daemon's log: "level: vm: text", one entry a line."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(TextFormatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def having(self, *texts: str) -> list[str]:
        """The lines that contain all texts."""
        return [line for line in self.lines if all(text in line for text in texts)]


class Host:
    """A daemon that serves a VM in this process."""

    def __init__(self, vm: Vm, path: Path) -> None:
        self._vm = vm
        self._path = path

    def vm(self) -> Vm:
        return self._vm

    def path(self) -> Path:
        return self._path


@asynccontextmanager
async def serving(directory: Path, *options: str, name: str = "vm1") -> AsyncIterator[Host]:
    """Run the daemon; it polls statistics only if an option says so."""
    path = directory / f"{name}.sock"
    settings = config.parse([f"--socket-path={path}", QUIET, *options])
    with pytest.MonkeyPatch.context() as patch:
        trio_clock = trio.lowlevel.current_clock()
        if isinstance(trio_clock, trio.testing.MockClock):
            # An autojump clock jumps in the middle of the loop's pass.
            jumps = trio_clock.autojump_threshold < math.inf
            patch.setattr(wakefulness, "monotonic", (lambda: 0.0) if jumps else trio.current_time)
            patch.setattr(clock, "boottime", trio.current_time)
        async with trio.open_nursery() as nursery:
            yield Host(await nursery.start(daemon.run, settings), path)
            nursery.cancel_scope.cancel()


class ByHand:
    """A connected front end and its rings, by queue."""

    def __init__(self, front_end: FrontEnd, queue_size: int) -> None:
        self.front_end = front_end
        self.ram = front_end.ram
        self.rings = {queue: DriverRing(self.ram, queue_size) for queue in Queue}
        self.indexes: dict[Queue, int] = {}
        self.bases: dict[int, int] = {}
        self.config_changes = 0

    async def start(
        self,
        features: int = LINUX,
        *,
        numbering: Numbering = Numbering.NEGOTIATED,
        bases: Mapping[int, int] | None = None,
    ) -> None:
        """DRIVER_OK, or `cont` with the bases of `stop`."""
        self.indexes = queue_indexes(numbering, self.front_end.features, features)
        rings = {index: self.rings[queue] for queue, index in self.indexes.items()}
        await self.front_end.start_device(rings, features=features, bases=bases)

    async def stop(self) -> dict[int, int]:
        return await self.front_end.stop_device()

    def fresh(self) -> None:
        """Reset all rings, as a driver does when it loads."""
        for ring in self.rings.values():
            ring.reset()

    def buffer(self, data: bytes) -> tuple[int, int, bool]:
        """A device-readable buffer with this content."""
        address = self.ram.allocate(len(data) + 1, 16)
        self.ram.write(address, data)
        return address, len(data), False

    def pfns(self, numbers: Iterable[int]) -> tuple[int, int, bool]:
        """A buffer of page frame numbers."""
        numbers = list(numbers)
        return self.buffer(struct.pack(f"<{len(numbers)}I", *numbers))

    def stats(self, values: Mapping[int, int]) -> tuple[int, int, bool]:
        """A statistics buffer."""
        return self.buffer(b"".join(vb.STAT.pack(*item) for item in values.items()))

    async def inflate(self, numbers: Iterable[int]) -> Used:
        return await self.rings[Queue.INFLATE].submit([self.pfns(numbers)])

    async def report(self, *ranges: tuple[int, int], indirect: bool = False) -> Used:
        buffers = [(address, length, True) for address, length in ranges]
        return await self.rings[Queue.REPORTING].submit(buffers, indirect=indirect)

    async def works(self, vm: Vm) -> None:
        """Prove that inflating frees exactly one page."""
        page = self.ram.regions[0].end - PAGE
        fill(self.ram, page, PAGE)
        before = vm.counters.freed_bytes
        with trio.fail_after(5):
            await self.inflate([page // PAGE])
        assert vm.counters.freed_bytes == before + PAGE
        assert not self.ram.is_resident(page)

    async def watch_config(self) -> None:
        """Count config change messages."""
        try:
            while True:
                await self.front_end.receive_backend_request()
                self.config_changes += 1
        except (BackEndGone, trio.ClosedResourceError):
            pass


@asynccontextmanager
async def by_hand(
    path: Path,
    ram: GuestRam | int = 64 * MIB,
    *,
    features: int | None = LINUX,
    numbering: Numbering = Numbering.NEGOTIATED,
    queue_size: int = 64,
) -> AsyncIterator[ByHand]:
    """Connect and start the device, or with features=None only connect; disconnect at the end."""
    with ram if isinstance(ram, GuestRam) else GuestRam.create(ram) as memory:
        async with (
            await FrontEnd.connect(path, memory) as front_end,
            trio.open_nursery() as nursery,
        ):
            await front_end.handshake()
            guest = ByHand(front_end, queue_size)
            nursery.start_soon(guest.watch_config)
            if features is not None:
                await guest.start(features, numbering=numbering)
            yield guest
            nursery.cancel_scope.cancel()


async def starts_over(vm: Vm, guest: ByHand) -> None:
    """Make a good handshake on the same connection, and prove that the device works."""
    bases, channel = await guest.stop(), guest.front_end._channel
    await guest.front_end.handshake()
    assert channel is not None
    channel.close()
    await guest.start(bases=bases)
    await guest.works(vm)


async def to_target(vm: Vm, guest: SimulatedGuest, target: int) -> None:
    """Set the target and wait until the guest reaches it."""
    vm.device().set_target(target)
    with trio.fail_after(20):
        await guest.driver.wait_balloon((guest.ram.size - target) // PAGE)
    assert vm.statistics().actual == target


async def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Poll a condition that no event announces, such as the host's memory."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - the kernel has no event for it
            await trio.sleep(0.002)


async def told(guest: ByHand) -> int:
    """Return the number of config changes, once none is in flight."""
    await guest.front_end.get_u64(1)  # GET_FEATURES: all before it was served
    await trio.testing.wait_all_tasks_blocked(0.01)
    return guest.config_changes


async def is_refused(connection: Connection, request: int, payload: bytes, *fds: int) -> bool:
    """Send a request with need_reply; return whether it was refused."""
    try:
        await connection.command(request, payload, fds)
    except Refused:
        return True
    return False


def fill(ram: GuestRam, address: int, length: int) -> None:
    """Write every page of a range."""
    ram.write(address, b"\xa5" * length)


def is_filled(ram: GuestRam, address: int, length: int) -> bool:
    return ram.read(address, length) == b"\xa5" * length


def ring_pages(rings: Iterable[DriverRing]) -> set[int]:
    """Page numbers that the rings lie in."""
    return {
        address // PAGE
        for ring in rings
        for start, size in (
            (ring.descriptors, 16 * ring.size),
            (ring.available, 4 + 2 * ring.size),
            (ring.used, 4 + 8 * ring.size),
        )
        for address in range(start, start + size)
    }


def refused(vm: Vm) -> dict[str, int]:
    """Return the bytes not discarded, by reason, without zeros."""
    return dict(+Counter(vm.counters.refused_bytes))


def open_fds() -> Counter[str]:
    """Count this process's open descriptors by kind or file."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{name}")
            links.append(link.partition(":[")[0])  # without the number of a socket or pipe
        except FileNotFoundError:
            continue  # the one that listdir used
    return Counter(links)


def guest_mappings() -> int:
    """Count this process's mappings of simulated guests' memory."""
    return Path("/proc/self/maps").read_text().count("simulated-guest-ram")

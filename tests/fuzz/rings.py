"""Target: arbitrary guest memory, regions and rings, walked and served."""

from __future__ import annotations

import os
from typing import Final

import trio
from trio.testing import MockClock

from protocol.vhost_user_payloads import Region, VringAddress
from protocol.virtio_balloon import Queue
from protocol.virtio_ring import DESCRIPTOR
from tests.fuzz.source import Source
from tests.fuzz.walk import check_walk
from vhost_balloon.balloon.device import Balloon
from vhost_balloon.errors import FrontEndError, RingError
from vhost_balloon.fds import Kick, OwnedFd
from vhost_balloon.figures.counters import Counters
from vhost_balloon.figures.discard_policy import DiscardMode, DiscardPolicy
from vhost_balloon.log.lines import VmLog
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.memory.pin_guard import PinGuard
from vhost_balloon.memory.region import MappedRegion, check_disjoint
from vhost_balloon.pace.wakefulness import Wakefulness
from vhost_balloon.queues.attached_guest import AttachedGuest
from vhost_balloon.queues.deflate import DeflateProcessor
from vhost_balloon.queues.discarding import InflateProcessor, ReportProcessor
from vhost_balloon.queues.processor import HintProcessor
from vhost_balloon.queues.ring import Processor, StartedRing, bind
from vhost_balloon.queues.stats import StatsProcessor
from vhost_balloon.session.effects import RingSetup

INVARIANT: Final = (
    "Whatever guest memory holds, a ring gives at most queue size chains of at most queue size "
    "buffers or a RingError; each byte that it names is either refused or in a whole page "
    "inside memory that no ring lies in; and a ring that is served stops when it is told to, its "
    "used index ahead by what it answered."
)

FILE_SIZE: Final = 16 << 10
_PLACES: Final = (0, 0x1000, 0x3800, 0x4000, 1 << 32, (1 << 64) - FILE_SIZE, 0x10, 0x8000)
_QUEUE_SIZES: Final = (8, 4, 2, 1, 16, 64, 256)
_TURNS: Final = 6
USER: Final = 1 << 40


def _regions(source: Source, fd: int) -> GuestMemory:
    """Map one to four windows of the file, without those that a session would refuse."""
    memory = GuestMemory()
    for number in range(1 + source.number() % 4):
        place, offset, size = source.pick(_PLACES), source.number() << 6, source.number() << 6
        region = Region(place, size or FILE_SIZE - offset, USER * (number + 1), offset)
        owned = OwnedFd(os.dup(fd))
        try:
            check_disjoint((mapped.region for mapped in memory.regions), region)
            memory.add(MappedRegion(region, owned))
        except FrontEndError:
            owned.close()
    return memory


def _setup(source: Source) -> RingSetup:
    """A ring's addresses and base; aligned, since a session checks that."""
    size, base = source.pick(_QUEUE_SIZES), source.number(2)
    user = USER * (1 + source.number() % 4)
    descriptor, available, used = (source.number() << 6 for _ in range(3))
    parts = (user + descriptor, user + (used or 0x400), user + (available or 0x200))
    return RingSetup(size, VringAddress(0, 0, *parts, 0), base)


def _fill(source: Source, fd: int) -> None:
    """Write runs of at most 64 bytes until the input ends."""
    os.ftruncate(fd, FILE_SIZE)
    while source:
        at, size = source.number(2) % FILE_SIZE, source.number() % 65
        os.pwrite(fd, source.some(size)[: FILE_SIZE - at], at)


def _processor(device: AttachedGuest, queue: Queue) -> Processor:
    match queue:
        case Queue.STATS:
            return StatsProcessor(device)
        case Queue.FREE_PAGE:
            return HintProcessor(device)
        case Queue.DEFLATE:
            return DeflateProcessor(device)
        case Queue.INFLATE:
            return InflateProcessor(device)
        case Queue.REPORTING:
            return ReportProcessor(device)


def _used_index(ring: StartedRing) -> int:
    return ring.virtqueue._used_words[1]


async def _serve(queue: Queue, setup: RingSetup, memory: GuestMemory) -> None:
    policy = DiscardPolicy(DiscardMode.ALWAYS)
    device = AttachedGuest(
        Balloon(), Counters(), policy, Wakefulness(), PinGuard(None), VmLog("fuzz"), memory
    )
    processor, broken = _processor(device, queue), list[RingError]()
    ring = StartedRing(0, setup, bind(setup, setup.base, memory), Kick(OwnedFd(os.eventfd(0))))
    try:
        device.protect(ring.ranges)
        before = _used_index(ring)
        async with trio.open_nursery() as nursery:
            ring.activate(nursery, queue, processor, lambda _, error: broken.append(error))
            for _ in range(_TURNS):
                await trio.lowlevel.checkpoint()
                if isinstance(processor, StatsProcessor) and not broken:
                    processor.request()
            await ring.deactivate()
        answered = (_used_index(ring) - before) & 0xFFFF
        assert answered == ring.requests & 0xFFFF, (
            "the used index differs from the number of answers"
        )
        assert device.counters.requests[queue] == ring.requests
    finally:
        ring.close()


def run(data: bytes) -> None:
    source = Source(data)
    fd = os.memfd_create("fuzz-memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    memory = GuestMemory()
    try:
        os.ftruncate(fd, FILE_SIZE)
        queue = source.pick(list(Queue))
        memory = _regions(source, fd)
        setup = _setup(source)
        _fill(source, fd)
        try:
            check_walk(setup, memory)
        except FrontEndError:  # no ring fits here
            return
        trio.run(_serve, queue, setup, memory, clock=MockClock())
    finally:
        memory.close()
        os.close(fd)


def _words(*values: int) -> bytes:
    return b"".join(value.to_bytes(2, "little") for value in values)


def _placed(at: int, data: bytes) -> bytes:
    return _words(at) + bytes((len(data),)) + data


def _descriptor(address: int, length: int, flags: int, following: int = 0) -> bytes:
    return DESCRIPTOR.pack(address, length, flags, following)


def _seed(queue: int, *content: bytes) -> bytes:
    """One region at 0 with the whole file, a ring of 8 at its start, and the bytes to write."""
    return bytes((queue, 0, 0, 0, 0)) + bytes(7) + b"".join(content)


_OFFER: Final = _placed(0x200, _words(0, 3, 0, 2, 4))
"""The available ring: three chains."""
_CHAINS: Final = _placed(
    0,
    _descriptor(0x2000, 0x1000, 1, 1) + _descriptor(0x1000, 0x2000, 2) + _descriptor(0x500, 40, 0),
)
_INDIRECT: Final = _placed(0x40, _descriptor(0x600, 32, 4))
_TABLE: Final = _placed(0x600, _descriptor(0x3000, 0x1000, 3, 1) + _descriptor(0x1800, 0x1000, 2))
_PFNS: Final = _placed(0x500, b"".join(n.to_bytes(4, "little") for n in (1, 3, 2, 0, 1 << 20)))

SEEDS: Final = (
    *(_seed(queue, _OFFER, _CHAINS, _INDIRECT, _TABLE, _PFNS) for queue in range(5)),
    # Two regions share the file; the ring lies in the first.
    bytes((3, 1, 0, 0, 0, 4, 0, 0)) + bytes(7) + _OFFER + _CHAINS + _INDIRECT + _TABLE,
)
TOKENS: Final = (
    *(
        _descriptor(at, size, flags)
        for at in (0, 0x2000, 1 << 32)
        for size in (0x1000, 40)
        for flags in (0, 2, 4)
    ),
    *(place.to_bytes(8, "little") for place in _PLACES),
    _OFFER,
    _INDIRECT,
)

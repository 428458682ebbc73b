"""A VM that floods all its rings and its socket.

    python -m tests.benchmarks.programs.flooding_vm SOCKET

Every chain is written once; one store into the available index offers all of them again, so the
flood costs this process as little, and the daemon as much, as possible.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from protocol import vhost_user as vu
from protocol import vhost_user_payloads as payloads
from protocol.virtio_balloon import CONFIG_SIZE, BalloonFeature, Queue, StatTag
from tests.support.end_to_end import LINUX, MIB, PAGE, ByHand, by_hand
from vhost_balloon.simulator.memory import GuestRam
from vhost_balloon.simulator.ring import DriverRing

Buffer = tuple[int, int, bool]

SIZE: Final = 1024
"""Descriptors of each ring, and of the longest chain."""
RAM: Final = 512 * MIB
DRIVER_AREA: Final = 64 * MIB
HOLE: Final = 1 << 40
"""Address of a sparse region: gigabytes at no cost to this guest."""
HOLE_SIZE: Final = 64 << 30
PIPELINED: Final = 32
"""Messages that wait in the socket."""


def flood_memory() -> GuestRam:
    ram = GuestRam.create(RAM, driver_area=DRIVER_AREA)
    ram.add(HOLE_SIZE, HOLE)
    return ram


def page_requests(guest: ByHand, numbers: random.Random) -> list[list[Buffer]]:
    """Inflate and deflate requests with wrong sizes, counts, order or addresses."""
    pages = range(DRIVER_AREA // PAGE, RAM // PAGE)
    scattered = guest.pfns(numbers.sample(pages, 16384))
    small = [guest.pfns(numbers.sample(pages, 1)) for _ in range(SIZE)]
    return [
        [guest.pfns(range(pages[0], pages[0] + 256))],
        [scattered],
        small,
        [(HOLE, (4 << 30) - PAGE, False)] * 16,
        [guest.pfns(numbers.sample(pages, 256))],
        [scattered] * 8,
        [guest.pfns(numbers.sample(range(1 << 32), 4096))],
        [(small[0][0], 1, False)] * SIZE,
    ]


def report_requests(numbers: random.Random) -> list[list[Buffer]]:
    places = numbers.sample(range(DRIVER_AREA, RAM, PAGE), SIZE)
    return [
        [(address, PAGE, True) for address in places],
        [(DRIVER_AREA + 4 * MIB * n, 4 * MIB, True) for n in range(32)],
        [(HOLE, 3 << 30, True)] * 16,
        [(address, 1, True) for address in places],
        [(places[0], PAGE, True)],
    ]


def stats_requests(guest: ByHand) -> list[list[Buffer]]:
    return [
        [guest.stats({StatTag.MEMFREE: 1})],
        [(HOLE, (4 << 30) - 2, False)] * SIZE,
        [(HOLE, 10, False)] * SIZE,
    ]


class Flood:
    """A ring kept full of the same chains."""

    def __init__(self, ring: DriverRing, requests: Sequence[list[Buffer]]) -> None:
        self._ring = ring
        heads = [ring.add(request, indirect=True) for request in requests]
        every = [heads[position % len(heads)] for position in range(SIZE)]
        ring.ram.write(ring.available + 4, struct.pack(f"<{SIZE}H", *every))

    def again(self) -> None:
        """Offer the used chains again; the heads stay in place."""
        self._ring.publish_index(self._ring.used_index + SIZE)
        self._ring.kick()


class Messages:
    """Sends config reads and writes as fast as they are answered."""

    def __init__(self, sock: socket.socket) -> None:
        header = payloads.CONFIG.pack(0, CONFIG_SIZE, vu.ConfigFlag.WRITABLE) + bytes(CONFIG_SIZE)
        flags = vu.VERSION | vu.HeaderFlag.NEED_REPLY
        kinds = (vu.Request.GET_CONFIG, vu.Request.SET_CONFIG)
        self._burst = b"".join(
            vu.HEADER.pack(kind, flags, len(header)) + header for kind in kinds
        ) * (PIPELINED // 2)
        self._sock = sock
        self._left = b""

    def again(self) -> None:
        with suppress(BlockingIOError):
            self._sock.recv(1 << 16, socket.MSG_DONTWAIT)
        self._left = self._left or self._burst
        with suppress(BlockingIOError):
            self._left = self._left[self._sock.send(self._left, socket.MSG_DONTWAIT) :]


async def flood(path: Path) -> None:
    numbers = random.Random(1)
    features = LINUX | int(BalloonFeature.FREE_PAGE_HINT)
    async with by_hand(path, flood_memory(), features=features, queue_size=SIZE) as guest:
        pages = page_requests(guest, numbers)
        rings = [
            Flood(guest.rings[queue], requests)
            for queue, requests in (
                (Queue.INFLATE, pages),
                (Queue.DEFLATE, pages),
                (Queue.REPORTING, report_requests(numbers)),
                (Queue.STATS, stats_requests(guest)),
                (Queue.FREE_PAGE, [[(HOLE, PAGE, True)] * SIZE]),
            )
        ]
        with socket.socket(fileno=os.dup(guest.front_end._sock.fileno())) as sock:
            messages = Messages(sock)
            print("flooding", flush=True)
            while True:
                for each in rings:
                    each.again()
                    messages.again()


if __name__ == "__main__":
    trio.run(flood, Path(sys.argv[1]))

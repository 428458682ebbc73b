"""A VM that gives back a little memory now and then and measures the latency of the answers.

    python -m tests.benchmarks.programs.quiet_vm SOCKET

Each line of standard input is the duration of a round in seconds; each line of standard output has
the latencies of that round, in seconds, by kind.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from pathlib import Path
from typing import Final

import trio

from protocol.virtio_balloon import Queue
from tests.support.end_to_end import BLOCK, MIB, PAGE, ByHand, by_hand
from vhost_balloon.simulator.ring import DriverRing

BLOCKS: Final = 32
"""Blocks in a report, as in Linux; every other block of memory, so that no two are adjacent."""
FIRST: Final = 16 * MIB
RAM: Final = FIRST + 2 * BLOCKS * BLOCK
INFLATES: Final = 10
PAUSE: Final = 0.005


def populate(guest: ByHand, address: int, length: int) -> None:
    """Make the host allocate memory for a range."""
    os.posix_fallocate(guest.ram.regions[0].fd, address, length)


def answered(ring: DriverRing) -> float:
    """Kick, wait for the answer and return the seconds it took."""
    assert ring.call_event is not None
    ready = select.poll()
    ready.register(ring.call_event.fileno(), select.POLLIN)
    ring.call_event.take()
    started = time.perf_counter()
    ring.kick()
    while not ring.pop_used():
        ready.poll()
        ring.call_event.take()
    return time.perf_counter() - started


def report(guest: ByHand) -> float:
    blocks = [FIRST + 2 * BLOCK * number for number in range(BLOCKS)]
    for address in blocks:
        populate(guest, address, BLOCK)
    time.sleep(PAUSE)
    ring = guest.rings[Queue.REPORTING]
    ring.add([(address, BLOCK, True) for address in blocks], indirect=True)
    return answered(ring)


def inflate(guest: ByHand, buffer: tuple[int, int, bool]) -> float:
    populate(guest, FIRST, PAGE)
    time.sleep(PAUSE)
    ring = guest.rings[Queue.INFLATE]
    ring.add([buffer])
    return answered(ring)


async def measure(path: Path) -> None:
    async with by_hand(path, RAM) as guest:
        page = guest.pfns([FIRST // PAGE])
        print("ready", flush=True)
        for line in sys.stdin:
            until = time.monotonic() + float(line)
            latencies: dict[str, list[float]] = {"report": [], "inflate": []}
            while time.monotonic() < until:
                latencies["report"].append(report(guest))
                latencies["inflate"] += [inflate(guest, page) for _ in range(INFLATES)]
            print(json.dumps(latencies), flush=True)


if __name__ == "__main__":
    trio.run(measure, Path(sys.argv[1]))

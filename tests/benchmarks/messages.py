"""Processor time of the two requests that QEMU makes at each step of a balloon.

The daemon runs with a record, as under systemd, and bare. Requests come in a row, the next one at
once after the answer, and now and then, so that the daemon slept before each.
"""

from __future__ import annotations

import os
import socket
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import trio

from protocol import vhost_user as vu
from protocol import vhost_user_payloads as payloads
from protocol.virtio_balloon import CONFIG_SIZE, CONFIG_SPACE
from tests.benchmarks.clocks import cpu_seconds_at_rest
from tests.benchmarks.priority import placed, preferred
from tests.benchmarks.report import Bar, Row
from tests.support.command import daemon
from tests.support.end_to_end import by_hand
from tests.support.restarting.service_manager import ServiceManager

PAUSE: Final = 0.02
ROW, APART = "in a row", "every 20 ms"
BARS: Final = {ROW: 12.0, APART: 35.0}
"""Microseconds of processor time for one request."""
COUNTS: Final = {ROW: 5000, APART: 100}
"""Requests of each kind in a round."""


class NoAnswer(Exception):
    """The daemon closed the connection."""


class Asker:
    """A connected VM. pid: the process that serves it."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self._sock = sock
        self._pid = pid

    def cost(self, requests: Sequence[bytes], pause: float) -> tuple[float, float]:
        """Return the processor time of a request and the median latency, in microseconds."""
        self._ask(requests[-1:])
        used = cpu_seconds_at_rest(self._pid)
        latencies = self._ask(requests, pause)
        used = cpu_seconds_at_rest(self._pid) - used
        return used / len(requests) * 1e6, statistics.median(latencies) * 1e6

    def _ask(self, requests: Sequence[bytes], pause: float = 0) -> list[float]:
        """Return the seconds until each answer. Raises NoAnswer.

        Does as little as possible in between: the daemon's polling meanwhile counts as its time.
        """
        send, receive, clock = self._sock.sendall, self._sock.recv, time.perf_counter
        latencies = []
        for request in requests:
            if pause:
                time.sleep(pause)
            started = clock()
            send(request)
            if not receive(4096):
                raise NoAnswer
            latencies.append(clock() - started)
        return latencies


def requests(kind: vu.Request, count: int) -> list[bytes]:
    """What QEMU sends when the guest reads a field, or writes `actual`, each time another."""
    header = payloads.CONFIG.pack(0, CONFIG_SIZE, vu.ConfigFlag.WRITABLE)
    flags = vu.VERSION
    if kind is vu.Request.SET_CONFIG:
        flags |= vu.HeaderFlag.NEED_REPLY
    size = len(header) + CONFIG_SIZE
    head = vu.HEADER.pack(kind, flags, size) + header
    if kind is vu.Request.GET_CONFIG:
        return [head + bytes(CONFIG_SIZE)] * count
    return [head + CONFIG_SPACE.pack(0, actual, 0, 0) for actual in range(256, 256 + count)]


@contextmanager
def recorded(path: Path) -> Iterator[int]:
    """Run a daemon with a descriptor store; yield its process id."""
    with ServiceManager(*_options(path)) as manager:
        yield manager.process.pid


@contextmanager
def bare(path: Path) -> Iterator[int]:
    """Run a daemon without one; yield its process id."""
    with daemon(*_options(path), wait_for=path) as started:
        yield started.process.pid


SERVED: Final = {"with a record": recorded, "bare": bare}


def measure(rounds: int, *, counts: dict[str, int] = COUNTS) -> list[Row]:
    """Measure each request `rounds` times, in turns. counts: requests of each kind in a round."""
    return trio.run(_measure, rounds, counts)


async def _measure(rounds: int, counts: dict[str, int]) -> list[Row]:
    kinds = (vu.Request.GET_CONFIG, vu.Request.SET_CONFIG)
    works = [(kind, pace) for pace in counts for kind in kinds]
    costs: dict[object, dict[str, list[float]]] = {work: defaultdict(list) for work in works}
    latencies: dict[object, dict[str, list[float]]] = {work: defaultdict(list) for work in works}
    async with _askers() as askers:
        for number in range(rounds):
            for kind, pace in works:
                asked = requests(kind, counts[pace])
                for name, asker in askers.items():
                    with preferred():
                        cost, latency = asker.cost(asked, PAUSE if pace == APART else 0)
                    costs[kind, pace][name].append(cost)
                    latencies[kind, pace][name].append(latency)
            print(f"messages: round {number + 1} of {rounds}", file=sys.stderr)
    found = []
    for kind, pace in works:
        bars = [Bar(name, BARS[pace], at_most=True) for name in SERVED]
        work = f"{kind.name} {pace}"
        found.append(Row(f"CPU of {work}", "us", costs[kind, pace], bars=bars))
        found.append(Row(f"latency of {work}", "us", latencies[kind, pace], note="p50 of a round"))
    return found


@asynccontextmanager
async def _askers() -> AsyncIterator[dict[str, Asker]]:
    """Run the daemons, each with a VM whose device runs."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        found, pids = {}, []
        for number, (name, served) in enumerate(SERVED.items()):
            path = Path(folder) / f"vm{number}.sock"
            pids.append(stack.enter_context(served(path)))
            guest = await stack.enter_async_context(by_hand(path))
            sock = socket.socket(fileno=os.dup(guest.front_end._sock.fileno()))
            stack.enter_context(sock)
            sock.setblocking(True)
            found[name] = Asker(sock, pids[-1])
        stack.enter_context(placed(pids, ()))
        yield found


def _options(path: Path) -> tuple[str, ...]:
    return (f"--socket-path={path}", "--stats-interval=0", "--log-level=error")

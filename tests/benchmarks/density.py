"""Density: what many VMs cost the daemon, idle and while each reports every two seconds."""

from __future__ import annotations

import compileall
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Final

import trio

import protocol
import vhost_balloon
from tests.rig import process
from tests.rig.daemon import Daemon, connectable
from tests.rig.memory import MiB
from vhost_balloon.simulator import GuestRam

from .clocks import cpu_seconds
from .crowd import BLOCK, RAM, REPORT_SECONDS, Crowd, use_pages
from .neighbour import Neighbour
from .report import Bar, Row

COUNTS: Final = (1, 10, 100, 500)
FLOOR_REQUESTS: Final = 200
START_SECONDS: Final = 20.0
_MANY: Final = 500


class Density:
    """What was measured so far, by number of VMs."""

    def __init__(self, counts: tuple[int, ...]) -> None:
        self.memory: dict[int, list[float]] = {count: [] for count in counts}
        self.pss: dict[int, list[float]] = {count: [] for count in counts}
        self.idle: dict[int, list[float]] = {count: [] for count in counts}
        self.reporting: dict[int, dict[str, list[float]]] = {
            count: {"in all": [], "kernel's freeing": [], "besides": []} for count in counts
        }
        self.served: dict[int, list[float]] = {count: [] for count in counts}
        self.life: dict[int, dict[str, list[float]]] = {
            count: {"attach": [], "detach": []} for count in counts
        }
        self.control: dict[int, dict[str, list[float]]] = {count: {} for count in counts}

    async def measure(self, count: int, seconds: float) -> None:
        """Measure a crowd of count VMs once."""
        async with Crowd(count) as crowd:
            await trio.sleep(1)  # what attaching left to be done
            self.memory[count].append(own_memory(crowd.daemon.pid) / MiB)
            self.pss[count].append(crowd.daemon.pss() / MiB)
            used = cpu_seconds(crowd.daemon.pid)
            await trio.sleep(seconds)
            idle = (cpu_seconds(crowd.daemon.pid) - used) / seconds
            self.idle[count].append(100 * idle)
            await self._measure_reporting(crowd, count, seconds)
            await self._measure_control(crowd, count)
            comings = [await crowd.come_and_go() for _ in range(5)]
            for name, times in zip(("attach", "detach"), zip(*comings, strict=True), strict=True):
                self.life[count][name].append(statistics.median(times) * 1000)

    async def _measure_reporting(self, crowd: Crowd, count: int, seconds: float) -> None:
        used, started = cpu_seconds(crowd.daemon.pid), time.perf_counter()
        await crowd.report(seconds)
        elapsed = time.perf_counter() - started
        used = (cpu_seconds(crowd.daemon.pid) - used) / elapsed
        freeing = freeing_seconds() * crowd.requests / elapsed
        found = {
            "in all": 100 * used,
            "kernel's freeing": 100 * freeing,
            "besides": 100 * (used - freeing),
        }
        self.served[count].append(crowd.requests / elapsed)
        for name, value in found.items():
            self.reporting[count][name].append(value)

    async def _measure_control(self, crowd: Crowd, count: int) -> None:
        """While the VMs report."""
        found: dict[str, list[float]] = {}

        async def ask() -> None:
            found.update(await crowd.latencies(50))
            scope.cancel()

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await crowd.report(60)
        for command, times in found.items():
            self.control[count].setdefault(f"{command} p50", []).append(statistics.median(times))
            self.control[count].setdefault(f"{command} max", []).append(max(times))


def freeing_seconds() -> float:
    """Processor seconds that the kernel needs for one report of the crowd's, in a process that
    does nothing else."""
    with GuestRam.create(RAM) as ram, Neighbour(ram.regions[0].fd, RAM) as puncher:
        used = cpu_seconds(puncher.pid)
        for _ in range(FLOOR_REQUESTS):
            use_pages(ram)
            puncher.punch([(BLOCK, RAM)])
        return (cpu_seconds(puncher.pid) - used) / FLOOR_REQUESTS


def own_memory(pid: int) -> int:
    """Resident bytes of a process, without the pages of guests that it has mapped; libraries
    that others use too count in full."""
    text = Path(f"/proc/{pid}/status").read_text()
    sizes = re.findall(r"^Rss(?:Anon|File):\s+(\d+) kB$", text, re.MULTILINE)
    return sum(map(int, sizes)) * 1024


def start_seconds() -> float:
    """Seconds from the daemon's start until its control socket, the last one, takes clients."""
    daemon = Daemon()
    started = time.perf_counter()
    with (daemon.folder / "daemon.log").open("wb") as log:
        program = process.spawn(daemon.command(), output=log)
    try:
        while not connectable(daemon.control):
            if time.perf_counter() - started > START_SECONDS:
                raise TimeoutError(daemon.log())
            time.sleep(0.001)
        return time.perf_counter() - started
    finally:
        process.kill(program)
        daemon.close()


def measure(rounds: int, *, counts: tuple[int, ...] = COUNTS, seconds: float = 10.0) -> list[Row]:
    """Measure every crowd `rounds` times, each state for so many seconds."""
    density = Density(counts)
    for package in (protocol, vhost_balloon):  # as pip does with what it installs
        compileall.compile_dir(next(iter(package.__path__)), quiet=1)
    starting = []
    for number in range(rounds):
        starting += [start_seconds() * 1000 for _ in range(5)]
        for count in counts:
            trio.run(density.measure, count, seconds)
            print(f"density: round {number + 1} of {rounds}: {count} VMs", file=sys.stderr)
    return rows(density, starting)


def rows(density: Density, starting: list[float]) -> list[Row]:
    """The rows, with the bars that each is held to."""
    memory = {f"{count} VMs": values for count, values in density.memory.items()}
    bars = [_at_most("1 VMs", 40, 34)] if 1 in density.memory else []
    found = [
        Row("start to listening", "ms", {"daemon": starting}, bars=[_at_most("daemon", 400, 200)]),
        Row("memory", "MiB", memory, bars=bars, note="resident, without guests' pages"),
        Row("memory (PSS)", "MiB", {f"{count} VMs": v for count, v in density.pss.items()}),
    ]
    least, most = min(density.memory), max(density.memory)
    if least < most:
        pairs = zip(density.memory[most], density.memory[least], strict=True)
        each = [(many - few) / (most - least) for many, few in pairs]
        work = f"memory of each VM beyond {least}, of {most}"
        bars = [_at_most("a VM", 0.15, 0.05)]
        found.append(Row(work, "MiB", {"a VM": each}, bars=bars))
    idle = {f"{count} VMs": values for count, values in density.idle.items()}
    found.append(Row("CPU, idle", "% of a core", idle))
    for count, values in density.reporting.items():
        bars = [_at_most("besides", 50, 25)] if count == _MANY else []
        found.append(Row(f"CPU, {count} VMs reporting every 2 s", "% of a core", values, bars=bars))
    for count, served in density.served.items():
        note = f"{count / REPORT_SECONDS:g} are wanted"
        found.append(Row(f"reports of {count} VMs", "1/s", {"served": served}, note=note))
    for count in density.control:
        found.append(Row(f"control, {count} VMs reporting", "ms", density.control[count]))
        found.append(Row(f"one more VM than {count}", "ms", density.life[count]))
    return found


def _at_most(figure: str, limit: float, reach: float) -> Bar:
    return Bar(figure, limit, reach, at_most=True)

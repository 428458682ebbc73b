"""Repeats the experiment of the kernel series that introduced free page reporting.

All of a real guest's memory is touched once and returned to its allocator; then programs map,
touch and unmap memory as fast as they can. A guest without a balloon runs beside each kind of
guest with one, idle while the other is measured; they take turns going first.
"""

from __future__ import annotations

import base64
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from tests.benchmarks.programs.compiled import program
from tests.benchmarks.report import Bar, Row
from tests.rig.daemon import Daemon
from tests.rig.guest import Guest
from tests.rig.memory import GiB, Memory, MiB

FILLED_SHARE: Final = 0.9
"""Share of the guest's available memory that is touched once."""
SETTLE_SECONDS: Final = 30.0
"""How long freed memory may take to return to the host."""
LOADS: Final = (("base", 1), ("huge", 1), ("base", 2), ("huge", 2))

_BUILD: Final = ("-nostdlib", "-static", "-ffreestanding", "-fno-stack-protector", "-s")
_PROGRAM: Final = "/run/page_faults"
_PAGES: Final = {"base": "4 KiB pages", "huge": "THP"}


@dataclass(frozen=True)
class Kind:
    """A kind of guest to compare with one without a balloon."""

    name: str
    daemon: tuple[str, ...]
    kernel: str = ""


KINDS: Final = (
    Kind("reporting off", ("--no-reporting",)),
    Kind("reporting on", ()),
    Kind("reporting on, shuffling", (), "page_alloc.shuffle=1"),
)


class Faulter:
    """A guest with the page-fault program installed."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        text = base64.b64encode(program("page_faults", *_BUILD).read_bytes()).decode()
        guest.run(f"echo {text} | base64 -d >{_PROGRAM}; chmod +x {_PROGRAM}")

    def fill(self) -> None:
        """Touch nearly all memory once, then free it."""
        size = int(self.guest.meminfo()["MemAvailable"] * FILLED_SHARE) // MiB
        self.guest.run(f"{_PROGRAM} fill {size}", 600)

    def throughput(self, pages: str, tasks: int, milliseconds: int) -> float:
        """Return the pages touched per second by all tasks."""
        output = self.guest.run(f"{_PROGRAM} {pages} {tasks} {milliseconds}", 120)
        count, nanoseconds = map(int, output.split())
        return count / nanoseconds * 1e9

    def resident_share(self) -> float:
        """Return the host memory spent on the guest, in per cent of the guest's memory."""
        return 100 * self.guest.resident() / self.guest.memory.size


def measure(pairs: int, *, memory: int = 8 * GiB, milliseconds: int = 4000) -> list[Row]:
    """Run the experiment with `pairs` measurements of each load and kind."""
    rows = []
    for kind in KINDS:
        with ExitStack() as stack:
            plain = stack.enter_context(_guest(None, memory))
            other = stack.enter_context(_guest(kind, memory))
            rows += _compare(kind, plain, other, pairs, milliseconds)
    return rows


def measure_return(rounds: int, *, memory: int = 2 * GiB) -> Row:
    """Measure the host memory still spent on a guest half a minute after it freed its own."""
    shares = []
    with _guest(KINDS[1], memory) as faulter:
        for number in range(rounds):
            faulter.fill()
            time.sleep(SETTLE_SECONDS)
            shares.append(faulter.resident_share())
            print(f"faults: fill and free {number + 1} of {rounds}", file=sys.stderr)
    work = f"resident {SETTLE_SECONDS:.0f} s after fill and free, {memory // MiB} MiB guest"
    bar = Bar("reporting on", 15, at_most=True)
    return Row(work, "% of RAM", {"reporting on": shares}, bars=[bar])


def _compare(
    kind: Kind, plain: Faulter, other: Faulter, pairs: int, milliseconds: int
) -> list[Row]:
    """Fill both guests once, then measure every load in both `pairs` times."""
    found: dict[tuple[str, int], dict[str, list[float]]] = {
        load: {kind.name: [], "no device": []} for load in LOADS
    }
    shares: dict[str, list[float]] = defaultdict(list)
    sides = [("no device", plain), (kind.name, other)]
    for name, faulter in sides:
        faulter.fill()
        shares[f"{name}, filled"].append(faulter.resident_share())
    for number in range(pairs):
        for load, values in found.items():
            for name, faulter in sides:
                values[name].append(faulter.throughput(*load, milliseconds) / 1000)
        sides.reverse()
        print(f"faults: {kind.name}: pair {number + 1} of {pairs}", file=sys.stderr)
    for name, faulter in sides:
        shares[f"{name}, after"].append(faulter.resident_share())
    rows = [_row(kind, *load, values) for load, values in found.items()]
    resident = dict(sorted(shares.items()))
    return [*rows, Row(f"{kind.name}: resident on the host", "% of RAM", resident)]


def _row(kind: Kind, pages: str, tasks: int, values: dict[str, list[float]]) -> Row:
    bars = []
    if tasks == 1 and kind.name == "reporting on":
        bars.append(Bar("of no device", 0.98, by_interval=True))
    over = {"of no device": (kind.name, "no device")}
    work = f"page faults, {_PAGES[pages]}, tasks: {tasks}, {kind.name}"
    return Row(work, "1000 pages/s", values, over, bars)


@contextmanager
def _guest(kind: Kind | None, memory: int) -> Iterator[Faulter]:
    """Boot a guest with one processor; without a kind, it has no balloon."""
    with ExitStack() as stack:
        socket = None
        if kind is not None:
            daemon = Daemon("--stats-interval=0", *kind.daemon)
            socket = stack.enter_context(daemon).socket
        kernel = "" if kind is None else kind.kernel
        guest = Guest(socket, memory=Memory(memory), kernel_arguments=kernel)
        yield Faulter(stack.enter_context(guest))

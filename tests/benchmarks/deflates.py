"""Check whether deflates slow down as they add up: `python -m tests.benchmarks.deflates`.

One VM takes back single pages, one after another, as fast as it is answered. Prints the median
latency of each tenth of them.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from protocol.virtio_balloon import Queue
from tests.benchmarks.programs.quiet_vm import answered
from tests.support.command import daemon
from tests.support.end_to_end import MIB, PAGE, by_hand

TENTHS: Final = 10


def measure(count: int) -> list[float]:
    """Return the latencies of count consecutive deflates, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vm.sock"
        with daemon(f"--socket-path={path}", "--stats-interval=0", wait_for=path):
            return trio.run(_deflate, path, count)


async def _deflate(path: Path, count: int) -> list[float]:
    async with by_hand(path) as guest:
        page, ring = guest.pfns([8 * MIB // PAGE]), guest.rings[Queue.DEFLATE]
        found = []
        for _ in range(count):
            ring.add([page])
            found.append(answered(ring))
        return found


def tenths(latencies: Sequence[float]) -> list[float]:
    """The median of each tenth."""
    size = len(latencies) // TENTHS
    return [statistics.median(latencies[at * size : (at + 1) * size]) for at in range(TENTHS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="deflates in all")
    found = tenths(measure(parser.parse_args().count))
    print("us in each tenth:", *(f"{seconds * 1e6:.1f}" for seconds in found))
    print(f"last of first: {found[-1] / found[0]:.2f}")


if __name__ == "__main__":
    main()

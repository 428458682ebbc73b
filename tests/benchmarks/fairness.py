"""How long a quiet VM waits beside one that floods: `python -m tests.benchmarks.fairness`.

One daemon and two VMs, each a process of its own; rounds alternate between the quiet VM alone
(the other is not there) and beside the flood. Each round has its percentiles; what is printed is
their median over the rounds, so that one disturbed round does not decide.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from tests.command import daemon

ALONE, BESIDE = "alone", "beside"
PERCENTILES: Final = (50, 99)
SETTLE: Final = 0.3
"""Seconds until a VM that went or came is no news any more."""

Rounds = dict[str, list[dict[str, list[float]]]]
"""Latencies in seconds, by kind of request, for each round alone and beside."""


@contextmanager
def vm(module: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is a VM, once it says that it is attached."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            output(process).readline()
            yield process
        finally:
            process.kill()


def output(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def run(rounds: int, seconds: float) -> Rounds:
    """Measure in alternating rounds, each of so many seconds."""
    found: Rounds = {ALONE: [], BESIDE: []}
    with tempfile.TemporaryDirectory() as folder:
        quiet, flood = Path(folder) / "quiet.sock", Path(folder) / "flood.sock"
        options = [f"--socket-path={quiet}", f"--socket-path={flood}", "--stats-interval=0"]
        with (
            daemon(*options, "--log-level=error", wait_for=quiet),
            vm("quiet_vm", quiet) as measured,
        ):
            for _ in range(rounds):
                found[ALONE].append(measure(measured, seconds))
                with vm("flooding_vm", flood) as flooding:
                    found[BESIDE].append(measure(measured, seconds))
                    assert flooding.poll() is None, "the flood has ended"
    return found


def measure(quiet: subprocess.Popen[str], seconds: float) -> dict[str, list[float]]:
    """Have the quiet VM measure for so many seconds."""
    time.sleep(SETTLE)
    assert quiet.stdin is not None
    print(seconds, file=quiet.stdin, flush=True)
    latencies: dict[str, list[float]] = json.loads(output(quiet).readline())
    return latencies


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[-(-len(ordered) * percent // 100) - 1]


def summary(found: Rounds) -> dict[str, dict[str, float]]:
    """For each request and percentile: milliseconds alone and beside, and their ratio."""
    table = {}
    for request in ("report", "inflate"):
        for percent in PERCENTILES:
            alone, beside = (
                1000 * statistics.median(percentile(r[request], percent) for r in found[kind])
                for kind in (ALONE, BESIDE)
            )
            samples = min(len(r[request]) for rounds in found.values() for r in rounds)
            table[f"{request} p{percent}"] = {
                "alone_ms": alone,
                "beside_ms": beside,
                "ratio": beside / alone,
                "samples_a_round": samples,
            }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each kind")
    parser.add_argument("--seconds", type=float, default=12.0, help="length of a round")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    table = summary(run(arguments.rounds, arguments.seconds))
    if arguments.json:
        print(json.dumps(table, indent=2))
        return
    for name, row in table.items():
        print(
            f"{name:12} alone {row['alone_ms']:8.2f} ms   beside {row['beside_ms']:8.2f} ms"
            f"   ratio {row['ratio']:5.2f}   ({row['samples_a_round']} samples a round)"
        )


if __name__ == "__main__":
    main()

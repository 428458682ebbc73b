"""Measure how long a quiet VM waits beside a flooding one: `python -m tests.benchmarks.fairness`.

Two daemons and their VMs, four processes, share the processors under the kernel's scheduler.
Rounds alternate: the quiet VM alone (without the other and its daemon), beside the flood, and
beside a flood whose VM is limited to a tenth of a processor. Percentiles are taken per round;
their median over the rounds is printed, so that one disturbed round does not decide.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

from tests.support.command import daemon

ALONE, BESIDE, HELD = "alone", "beside", "held"
PERCENTILES: Final = (50, 99)
SETTLE: Final = 0.3
"""Seconds for the system to settle after a VM comes or goes."""

Rounds = dict[str, list[dict[str, list[float]]]]
"""Kind of round -> rounds -> kind of request -> latencies in seconds."""

PERIOD: Final = 0.05
SHARE: Final = 0.1
"""A held VM runs for this share of each period; PERIOD is in seconds."""


@contextmanager
def vm(module: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a VM process; yield it once it reports that it is attached."""
    command = [sys.executable, "-m", f"tests.benchmarks.programs.{module}", str(path)]
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


@contextmanager
def held(process: subprocess.Popen[str]) -> Iterator[None]:
    """Limit a process to SHARE of the time."""
    ended = threading.Event()

    def hold() -> None:
        while not ended.is_set():
            process.send_signal(signal.SIGSTOP)
            ended.wait(PERIOD * (1 - SHARE))
            process.send_signal(signal.SIGCONT)
            ended.wait(PERIOD * SHARE)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def serving(path: Path) -> Iterator[None]:
    """Run a daemon with one VM."""
    options = (f"--socket-path={path}", "--stats-interval=0", "--log-level=error")
    with daemon(*options, wait_for=path):
        yield


def run(rounds: int, seconds: float, kinds: Sequence[str] = (ALONE, BESIDE, HELD)) -> Rounds:
    """Measure in alternating rounds of the given length in seconds."""
    found: Rounds = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        quiet, flood = Path(folder) / "quiet.sock", Path(folder) / "flood.sock"
        with serving(quiet), vm("quiet_vm", quiet) as measured:
            for _ in range(rounds):
                for kind in kinds:
                    with ExitStack() as stack:
                        if kind != ALONE:
                            stack.enter_context(serving(flood))
                            flooding = stack.enter_context(vm("flooding_vm", flood))
                            stack.callback(check_floods, flooding)
                        if kind == HELD:
                            stack.enter_context(held(flooding))
                        found[kind].append(measure(measured, seconds))
    return found


def check_floods(flooding: subprocess.Popen[str]) -> None:
    assert flooding.poll() is None, "the flood has ended"


def measure(quiet: subprocess.Popen[str], seconds: float) -> dict[str, list[float]]:
    """Let the quiet VM measure for that many seconds."""
    time.sleep(SETTLE)
    assert quiet.stdin is not None
    print(seconds, file=quiet.stdin, flush=True)
    latencies: dict[str, list[float]] = json.loads(output(quiet).readline())
    return latencies


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the smallest value that percent % of the values do not exceed."""
    ordered = sorted(values)
    return ordered[-(-len(ordered) * percent // 100) - 1]


def summary(found: Rounds) -> dict[str, dict[str, float]]:
    """For each request and percentile: milliseconds by kind, and the ratio to the VM alone."""
    table = {}
    for request in ("report", "inflate"):
        for percent in PERCENTILES:
            row: dict[str, float] = {
                kind: 1000 * statistics.median(percentile(r[request], percent) for r in rounds)
                for kind, rounds in found.items()
            }
            for kind in found.keys() - {ALONE}:
                row[f"{kind} of {ALONE}"] = row[kind] / row[ALONE]
            row["samples"] = min(len(r[request]) for rounds in found.values() for r in rounds)
            table[f"{request} p{percent}"] = row
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
        print(name, *(f"{key} {value:.2f}" for key, value in row.items()), sep="   ")


if __name__ == "__main__":
    main()

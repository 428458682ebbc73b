"""Measure how long a quiet VM waits beside a flooding one.

Two daemons and their VMs, four processes, share the processors under the kernel's scheduler.
Rounds alternate: the quiet VM alone (without the other and its daemon), beside the flood, and
beside a flood whose VM is limited to a tenth of a processor. Percentiles are taken per round, so
that one disturbed round does not decide.
"""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

from tests.benchmarks.report import Bar, Row
from tests.support.command import daemon

ALONE, BESIDE, HELD = "alone", "beside", "held"
PERCENTILES: Final = (50, 99)
SETTLE: Final = 0.3
"""Seconds for the system to settle after a VM comes or goes."""

BARS: Final = {f"{BESIDE} of {ALONE}": 2.0, f"{HELD} of {ALONE}": 1.1}
"""How much longer the median report may take."""

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
            for number in range(rounds):
                for kind in kinds:
                    with ExitStack() as stack:
                        if kind != ALONE:
                            stack.enter_context(serving(flood))
                            flooding = stack.enter_context(vm("flooding_vm", flood))
                            stack.callback(check_floods, flooding)
                        if kind == HELD:
                            stack.enter_context(held(flooding))
                        found[kind].append(latencies(measured, seconds))
                print(f"fairness: round {number + 1} of {rounds}", file=sys.stderr)
    return found


def check_floods(flooding: subprocess.Popen[str]) -> None:
    assert flooding.poll() is None, "the flood has ended"


def latencies(quiet: subprocess.Popen[str], seconds: float) -> dict[str, list[float]]:
    """Let the quiet VM measure for that many seconds."""
    time.sleep(SETTLE)
    assert quiet.stdin is not None
    print(seconds, file=quiet.stdin, flush=True)
    found: dict[str, list[float]] = json.loads(output(quiet).readline())
    return found


def percentile(values: Sequence[float], percent: int) -> float:
    """Return the smallest value that percent % of the values do not exceed."""
    ordered = sorted(values)
    return ordered[-(-len(ordered) * percent // 100) - 1]


def rows(found: Rounds) -> list[Row]:
    """Return a row for each request and percentile: of each round, in milliseconds."""
    works = itertools.product(("report", "inflate"), PERCENTILES)
    return [_row(found, request, percent) for request, percent in works]


def _row(found: Rounds, request: str, percent: int) -> Row:
    values = {
        kind: [1000 * percentile(latencies[request], percent) for latencies in rounds]
        for kind, rounds in found.items()
    }
    over = {f"{kind} of {ALONE}": (kind, ALONE) for kind in found if kind != ALONE}
    held = (request, percent) == ("report", 50)
    bars = [Bar(name, BARS[name], at_most=True) for name in over] if held else []
    fewest = min(len(latencies[request]) for rounds in found.values() for latencies in rounds)
    note = f"a VM beside a flooding one; at least {fewest} in a round"
    return Row(f"{request} p{percent}", "ms", values, over, bars, note)


def measure(rounds: int, *, seconds: float = 12.0) -> list[Row]:
    """Measure `rounds` rounds of each kind, of that many seconds."""
    return rows(run(rounds, seconds))

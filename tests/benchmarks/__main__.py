"""`python -m tests.benchmarks [PART] [--rounds N] [--json FILE]`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.benchmarks import (
    device,
    fairness,
    faults,
    messages,
    processes,
    real_guest,
    refault,
)
from tests.benchmarks.machine import load, machine
from tests.benchmarks.programs.compiled import NoCompiler
from tests.benchmarks.report import Row, table
from tests.rig.errors import RigError
from tests.rig.memory import MiB
from tests.rig.provisioning.packages import provision

Options = argparse.Namespace


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table and write the JSON; a missed bar is not a failure."""
    options = _parser().parse_args(arguments)
    names = list(PARTS) if options.part == "all" else [options.part]
    try:
        provision()
        busy = load()
        rows = {name: _measured(name, options) for name in names}
    except (RigError, NoCompiler) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    _print(rows, busy)
    if options.json is not None:
        parts = {name: [row.as_json() for row in part] for name, part in rows.items()}
        found = {"machine": machine(), "load before": busy, "parts": parts}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _measured(name: str, options: Options) -> list[Row]:
    print(f"{name}: begins", file=sys.stderr)
    started = time.monotonic()
    rows = PARTS[name](options)
    print(f"{name}: done in {(time.monotonic() - started) / 60:.1f} min", file=sys.stderr)
    return rows


def _print(rows: dict[str, list[Row]], busy: float) -> None:
    for name, text in machine().items():
        print(f"{name}: {text}")
    print(f"load before: {busy:.2f}; medians, quartiles in brackets")
    for part, found in rows.items():
        print(f"\n== {part}\n{table(found)}")


def _device(options: Options) -> list[Row]:
    return device.measure(options.rounds or 10, arena=options.arena * MiB)


def _messages(options: Options) -> list[Row]:
    return messages.measure(options.rounds or 10)


def _guest(options: Options) -> list[Row]:
    return real_guest.measure(options.rounds or 10)


def _faults(options: Options) -> list[Row]:
    memory = options.guest_memory * MiB
    rows = faults.measure(options.pairs, memory=memory, milliseconds=options.fault_ms)
    return [*rows, faults.measure_return(options.rounds or 3)]


def _refault(options: Options) -> list[Row]:
    return refault.measure(options.rounds or 5)


def _processes(options: Options) -> list[Row]:
    return processes.measure(options.rounds or 50, vms=options.vms)


def _fairness(options: Options) -> list[Row]:
    return fairness.measure(options.rounds or 5)


PARTS: Final[dict[str, Callable[[Options], list[Row]]]] = {
    "device": _device,
    "messages": _messages,
    "guest": _guest,
    "faults": _faults,
    "refault": _refault,
    "processes": _processes,
    "fairness": _fairness,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("part", nargs="?", default="all", choices=(*PARTS, "all"))
    parser.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help="default: 10; refault and fairness 5; faults 3; processes 50",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    parser.add_argument(
        "--arena", type=int, default=512, metavar="MIB", help="device: memory (at least 128)"
    )
    parser.add_argument(
        "--pairs", type=int, default=10, metavar="N", help="faults: measurements of each load"
    )
    parser.add_argument(
        "--guest-memory",
        type=int,
        default=8192,
        metavar="MIB",
        help="faults: of each guest; two run",
    )
    parser.add_argument(
        "--fault-ms", type=int, default=4000, metavar="MS", help="faults: length of a measurement"
    )
    parser.add_argument(
        "--vms", type=int, default=200, metavar="N", help="processes: how many are idle"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""python -m tests.fuzz TARGET --seconds=600: fuzz a target until the first finding or time's end.

Uses atheris, which is guided by coverage, where installed (`pip install -e '.[fuzz]'`), otherwise
our own driver. Findings are kept in tests/fuzz/corpus/TARGET.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import importlib.util
import logging
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

from tests.fuzz.driver import MAX_SIZE, Finding, Target, error_of, fuzz, keep, shorten

WORK: Final = Path(tempfile.gettempdir()) / "vhost-balloon-fuzz"
"""Where atheris keeps inputs that add coverage, from run to run."""

_HANG: Final = 30
"""Time limit for one input, in seconds; every input should take less than one."""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--plain", action="store_true", help="our own driver in any case")
    return parser.parse_args()


def _found(target: Target, finding: Finding) -> None:
    path = keep(target, shorten(target, finding))
    traceback.print_exception(finding.error)
    print(f"{target.name}: found {path}", flush=True)


def _plainly(target: Target, seconds: float, seed: int) -> int:
    """Run our own driver; return the exit status."""
    started, runs = time.monotonic(), 0
    print(f"{target.name}: seed {seed}", flush=True)
    faulthandler.dump_traceback_later(_HANG, exit=True)  # the seed reproduces it
    for finding in fuzz(target, seed):
        if finding is not None:
            faulthandler.cancel_dump_traceback_later()
            _found(target, finding)
            return 1
        runs += 1
        if time.monotonic() - started > seconds:
            break
        faulthandler.dump_traceback_later(_HANG, exit=True)
    print(f"{target.name}: {runs} inputs in {seconds:g} s, nothing found")
    return 0


def _with_atheris(atheris: Any, target: Target, seconds: float, seed: int) -> None:
    """Never returns: libFuzzer ends the process."""
    folder = WORK / target.name
    for each in (folder, target.folder):
        each.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.start()):
        (folder / f"start-{number}").write_bytes(data)
    tokens = WORK / f"{target.name}.dict"
    tokens.write_text("".join(f'"{_escaped(token)}"\n' for token in target.tokens))
    options = {
        "max_total_time": int(seconds),
        "max_len": MAX_SIZE,
        "len_control": 0,
        "timeout": _HANG,
        "report_slow_units": _HANG,
        "seed": seed,
        "dict": tokens,
        "artifact_prefix": f"{target.folder}/",  # inputs that hang
        "rss_limit_mb": 4096,
    }
    arguments = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], str(folder), *arguments], _one(target))
    atheris.Fuzz()


def _escaped(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


def _one(target: Target) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        error = error_of(target, data)
        if error is not None:
            _found(target, Finding(data, error))
            os._exit(1)  # libFuzzer would save the same input again, unshortened

    return run


def main() -> int:
    arguments = _arguments()
    logging.getLogger("vhost_balloon").addHandler(logging.NullHandler())
    logging.getLogger("vhost_balloon").propagate = False
    guided = not arguments.plain and importlib.util.find_spec("atheris") is not None
    atheris: Any = importlib.import_module("atheris") if guided else None
    instrumented: AbstractContextManager[Any] = (
        atheris.instrument_imports(include=["protocol", "vhost_balloon"])
        if guided
        else nullcontext()
    )
    with instrumented:  # coverage is measured for the modules imported here
        from tests.fuzz.targets import TARGETS
    target = TARGETS.get(arguments.target)
    if target is None:
        sys.exit(f"no target {arguments.target}: there are {', '.join(TARGETS)}")
    if guided:
        _with_atheris(atheris, target, arguments.seconds, arguments.seed)
    return _plainly(target, arguments.seconds, arguments.seed)


if __name__ == "__main__":
    sys.exit(main())

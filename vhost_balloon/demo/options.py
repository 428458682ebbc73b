"""The demo's command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from vhost_balloon.demo.player import PLAY_SECONDS
from vhost_balloon.printable import printable
from vhost_balloon.sizes import parse_size

PROGRAM: Final = "vhost-balloon-demo"
MIB: Final = 1 << 20
DEFAULT_MEMORY: Final = 512 * MIB
MIN_MEMORY: Final = 64 * MIB
MAX_MEMORY: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class Options:
    """Parsed options. memory: in bytes; seconds: for the whole play."""

    memory: int = DEFAULT_MEMORY
    seconds: float = PLAY_SECONDS
    reporting: bool = True

    @property
    def pace(self) -> float:
        return self.seconds / PLAY_SECONDS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def parse_options(arguments: Sequence[str] | None) -> Options:
    """Parse the command line. Exits with status 2 on a mistake."""
    parser = _Parser(
        prog=PROGRAM,
        description="Show how memory freed by a simulated guest returns to the host.",
    )
    parser.add_argument(
        "--memory",
        type=_memory_size,
        default=DEFAULT_MEMORY,
        metavar="SIZE",
        help="the guest's memory, such as 512M or 2G (default 512M)",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=PLAY_SECONDS,
        help=f"approximate duration, from 3 to 600 (default {PLAY_SECONDS:.0f})",
    )
    parser.add_argument(
        "--no-reporting",
        action="store_true",
        help="run the daemon without free page reporting, for comparison",
    )
    values = parser.parse_args(arguments)
    return Options(values.memory, values.seconds, not values.no_reporting)


def _memory_size(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not MIN_MEMORY <= size <= MAX_MEMORY or size % MIB:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of MiB from 64M to 1T")
    return size


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 3 <= seconds <= 600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 3 to 600")
    return seconds

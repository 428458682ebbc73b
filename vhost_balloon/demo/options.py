"""The demo's command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from vhost_balloon.demo.player import PLAY_SECONDS
from vhost_balloon.demo.policy.lives import ACT_SECONDS
from vhost_balloon.printable import printable
from vhost_balloon.sizes import parse_size

PROGRAM: Final = "vhost-balloon-demo"
MIB: Final = 1 << 20
DEFAULT_MEMORY: Final = 512 * MIB
MIN_MEMORY: Final = 64 * MIB
MAX_MEMORY: Final = 1 << 40

PLAYS: Final = {"reporting": PLAY_SECONDS, "policy": 2 * ACT_SECONDS}
"""The plays, and their duration in seconds at pace 1."""


@dataclass(frozen=True, slots=True)
class Options:
    """Parsed options. play: one of PLAYS; memory: each guest's, in bytes; seconds: for the whole
    play."""

    memory: int = DEFAULT_MEMORY
    seconds: float = PLAY_SECONDS
    reporting: bool = True
    play: str = "reporting"

    @property
    def pace(self) -> float:
        return self.seconds / PLAYS[self.play]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def parse_options(arguments: Sequence[str] | None) -> Options:
    """Parse the command line. Exits with status 2 on a mistake."""
    parser = _Parser(
        prog=PROGRAM,
        description="Show how memory freed by a simulated guest returns to the host (reporting), "
        "or how the policy moves memory between three guests (policy).",
    )
    parser.add_argument(
        "play",
        nargs="?",
        choices=tuple(PLAYS),
        default="reporting",
        help="what to show (default reporting)",
    )
    parser.add_argument(
        "--memory",
        type=_memory_size,
        default=DEFAULT_MEMORY,
        metavar="SIZE",
        help="each guest's memory, such as 512M or 2G (default 512M)",
    )
    parser.add_argument(
        "--seconds",
        type=_seconds,
        help="approximate duration, from 3 to 600 (default "
        + ", ".join(f"{seconds:.0f} for {name}" for name, seconds in PLAYS.items())
        + ")",
    )
    parser.add_argument(
        "--no-reporting",
        action="store_true",
        help="run the daemon without free page reporting, for comparison",
    )
    values = parser.parse_args(arguments)
    if values.no_reporting and values.play != "reporting":
        parser.error(f"--no-reporting is not for the play {values.play}")
    seconds = values.seconds or PLAYS[values.play]
    return Options(values.memory, seconds, not values.no_reporting, values.play)


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

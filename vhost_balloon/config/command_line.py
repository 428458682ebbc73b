"""The daemon's command line: its options, and how their values are read."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Final

from vhost_balloon.config.option_parser import Parser, add_log_options
from vhost_balloon.errors import OperatorError
from vhost_balloon.figures.discard_policy import DiscardMode
from vhost_balloon.log.output import print_out
from vhost_balloon.metrics.options import add_metrics_options
from vhost_balloon.sizes import parse_rate
from vhost_balloon.vm.names import read_name
from vhost_balloon.vm.settings import MAX_STATS_INTERVAL, SWITCHES, SettingError, read_mode

CAPABILITIES: Final = {"type": "balloon"}
"""QEMU docs/interop/vhost-user.json, VhostUserBackendCapabilities."""


class _PrintCapabilities(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print_out(f"{json.dumps(CAPABILITIES)}\n")
        parser.exit()


class _Refuse(argparse.Action):
    """An option that is gone; const says what to do instead."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        raise OperatorError(f"{self.option_strings[0]} {self.const}")


def _name(text: str) -> str:
    try:
        return read_name(text)
    except SettingError as error:
        raise argparse.ArgumentTypeError(error.text) from None


def _absolute(text: str) -> Path:
    return Path(text).absolute()


def _mode(text: str) -> int:
    try:
        return read_mode(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= MAX_STATS_INTERVAL:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of seconds from 0 to {MAX_STATS_INTERVAL:.0f}"
        )
    return seconds


def _rate(text: str) -> int:
    try:
        return parse_rate(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def build_parser() -> argparse.ArgumentParser:
    """The daemon's command line."""
    parser = Parser(
        prog="vhost-balloon",
        description="A vhost-user back end that gives KVM guests a virtio memory balloon.",
    )
    parser.add_argument(
        "--print-capabilities",
        action=_PrintCapabilities,
        nargs=0,
        help="print the back end's capabilities as JSON and exit",
    )
    parser.add_argument(
        "--check-config",
        action="store_true",
        help="check options, files and addresses without serving anything, and exit",
    )
    vm = parser.add_argument_group("virtual machine")
    vm.add_argument(
        "--socket-path",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="listen here for the VM's front end",
    )
    vm.add_argument(
        "--fd",
        type=int,
        action="append",
        default=[],
        metavar="N",
        help="serve this connected front-end socket (whose process cannot be told: see --discard)",
    )
    vm.add_argument(
        "--name",
        type=_name,
        metavar="NAME",
        help="the VM's name (default: that of the socket's file, without .sock)",
    )
    vm.add_argument(
        "--config",
        type=_absolute,
        action="append",
        default=[],
        metavar="FILE",
        help="the VM's settings (TOML), read again by vhost-balloonctl reload; may be repeated, "
        "later files win",
    )
    _add_access(vm, "socket", "the front-end socket")
    control = parser.add_argument_group("control")
    control.add_argument(
        "--control-socket", type=Path, metavar="PATH", help="listen here for QMP clients"
    )
    _add_access(control, "control", "the control socket")
    control.add_argument(
        "--stats-interval",
        type=_interval,
        default=10.0,
        metavar="SECONDS",
        help="how often the guest is asked for statistics (default 10; 0: on demand only)",
    )
    add_metrics_options(parser)
    features = parser.add_argument_group("features, all offered by default")
    for name, (_, text) in SWITCHES.items():
        features.add_argument(f"--no-{name}", action="store_true", help=f"do not offer {text}")
    _add_memory(parser)
    add_log_options(parser)
    return parser


def _add_access(group: argparse._ArgumentGroup, prefix: str, what: str) -> None:
    group.add_argument(
        f"--{prefix}-mode",
        type=_mode,
        default=0o600,
        metavar="MODE",
        help=f"permissions of {what} (octal, default 0600)",
    )
    group.add_argument(f"--{prefix}-group", metavar="GROUP", help=f"group of {what}")


def _add_memory(parser: argparse.ArgumentParser) -> None:
    memory = parser.add_argument_group("guest memory")
    memory.add_argument(
        "--discard",
        choices=[mode.value for mode in DiscardMode],
        default=DiscardMode.AUTO.value,
        help="auto (default): not while the front end has memory pinned for passed-through "
        "devices, or may not be looked at (as another user's process); always: without looking; "
        "never: acknowledge and discard nothing",
    )
    memory.add_argument(
        "--report-rate",
        type=_rate,
        metavar="RATE",
        help="bytes a second, such as 512M/s, that the guest's reports may have discarded, and two "
        "seconds' worth at once (default: all); what is beyond it is acknowledged and kept",
    )
    memory.add_argument(
        "--discard-hugetlb",
        action="store_true",
        help="discard hugetlb pages too: the guest dies if it touches one again while the host's "
        "pool is empty",
    )
    memory.add_argument(
        "--discard-other-filesystems",
        action="store_true",
        help="discard memory in files that are on neither tmpfs nor hugetlbfs",
    )
    memory.add_argument(
        "--allow-unsealed-memory",
        action=_Refuse,
        nargs=0,
        const="is not needed any more: leave it out (each VM has a process of its own)",
        dest=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )

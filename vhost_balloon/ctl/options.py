"""The command line. Completion and the manual page's tests read it from here, too."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NoReturn

from vhost_balloon import __version__
from vhost_balloon.printable import printable
from vhost_balloon.sizes import parse_size

PROGRAM: Final = "vhost-balloonctl"
DEFAULT_FOLDER: Final = "/run/vhost-balloon"
STATS_SECONDS: Final = 3.0
MAX_STATS_SECONDS: Final = 60.0
"""What the daemon's balloon-stats allows."""

COMPLETION_SCRIPTS: Final[Mapping[str, str]] = {
    "bash": "vhost-balloonctl.bash",
    "zsh": "_vhost-balloonctl",
}
"""The files in vhost_balloon/completion, by shell. tests/support/completion_scripts.py makes them
from this command line."""

_UNIT: Final = "vhost-balloon@web1"
_GONE: Final = {
    "add": "no command adds a VM; one comes with its unit, web1 for example with "
    f"`systemctl enable --now {_UNIT}.socket`",
    "remove": "no command removes a VM; one goes with its unit, web1 for example with "
    f"`systemctl disable --now {_UNIT}.socket {_UNIT}.service`",
}
"""Commands of earlier versions, and what to do instead."""


class Parser(argparse.ArgumentParser):
    """Ends with one line on a mistake, instead of the usage and a line."""

    def error(self, message: str) -> NoReturn:
        for command, instead in _GONE.items():
            if f"COMMAND: invalid choice: {command!r}" in message:
                message = instead
        self.exit(2, f"{PROGRAM}: {printable(message)}\n")


def size(word: str) -> int:
    """A size as an argument."""
    try:
        return parse_size(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seconds(most: float = 1e6) -> Callable[[str], float]:
    """A time limit or interval as an argument: above 0 and at most so many seconds."""

    def convert(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = 0
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(
                f"{word!r} is no number of seconds above 0 and up to {most:g}"
            )
        return value

    return convert


def count(word: str) -> int:
    if not word.isascii() or not word.isdecimal() or not 0 < int(word[:12]) < 10**9:
        raise argparse.ArgumentTypeError(f"{word!r} is no number from 1 to 999999999")
    return int(word)


def build_parser() -> Parser:
    """The whole command line; a parsed one says in `command` what to do."""
    parser = Parser(
        prog=PROGRAM,
        description="See and steer the memory balloons of vhost-balloon's VMs.",
        epilog="SIZE is in bytes, or with a binary unit: 512M, 1.5G. Details: man vhost-balloonctl",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _add_where(parser, None)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands", parser_class=Parser
    )
    _add_queries(commands)
    _add_orders(commands)
    _add_upkeep(commands)
    _add_texts(commands)
    return parser


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read a command line; exits with one line on a mistake, and after --help and --version."""
    parser = build_parser()
    options = parser.parse_args(words)
    if options.command == "set" and options.timeout is not None and not options.wait:
        parser.error("--timeout goes with --wait: a target is accepted at once")
    if options.command in _UPKEEP and bool(options.vms) == options.all:
        parser.error(f"{options.command} takes the names of VMs, or --all")
    if options.folder is not None and options.control_socket is not None:
        parser.error("--folder and --control-socket do not go together")
    if options.folder is None:
        options.folder = DEFAULT_FOLDER
    return options


Commands = Any  # argparse's own class for this is private


def _add_queries(commands: Commands) -> None:
    listing = _add(commands, "list", "all VMs, a line each")
    listing.add_argument("--names", action="store_true", help="only their names, for scripts")
    _add(commands, "status", "everything about one VM", vm=True)
    stats = _add(commands, "stats", "a guest's memory statistics, asked for now", vm=True)
    stats.add_argument("--last", action="store_true", help="the last sample, without asking")
    stats.add_argument(
        "--timeout",
        type=seconds(MAX_STATS_SECONDS),
        default=STATS_SECONDS,
        metavar="SECONDS",
        help=f"how long the guest may take (default {STATS_SECONDS:g})",
    )
    watch = _add(commands, "watch", "a live table of all VMs; q ends it")
    watch.add_argument(
        "--interval",
        type=seconds(),
        default=1.0,
        metavar="SECONDS",
        help="between two looks (default 1)",
    )
    watch.add_argument("--count", type=count, metavar="N", help="end after so many looks")


def _add_orders(commands: Commands) -> None:
    order = _add(commands, "set", "set the memory that a guest is to keep", vm=True)
    order.add_argument("size", type=size, metavar="SIZE", help="such as 512M, 1.5G or 1073741824")
    order.add_argument("--wait", action="store_true", help="until the guest has got there")
    order.add_argument(
        "--timeout", type=seconds(), metavar="SECONDS", help="give up waiting after this long"
    )
    _add(commands, "pause", "acknowledge a guest's free pages without discarding them", vm=True)
    _add(commands, "resume", "discard a guest's free pages again", vm=True)


_UPKEEP: Final = {
    "reload": "have VMs' daemons read their configuration again",
    "upgrade": "have VMs' daemons become what is installed now, one after the other",
}


def _add_upkeep(commands: Commands) -> None:
    for name, does in _UPKEEP.items():
        command = _add(commands, name, does)
        command.add_argument("vms", nargs="*", metavar="VM", help="their names")
        command.add_argument("--all", action="store_true", help="all VMs")


def _add_texts(commands: Commands) -> None:
    arguments = _add(commands, "qemu-args", "print the options to add to a VM's QEMU", vm=True)
    arguments.add_argument(
        "--memory", type=size, metavar="SIZE", help="the guest's memory (default: what it has)"
    )
    monitoring = _add(commands, "monitoring", "print what is shipped for monitoring", json=False)
    monitoring.add_argument(
        "what", choices=("rules", "dashboard"), help="Prometheus alert rules, Grafana dashboard"
    )
    units = _add(commands, "install-units", "put systemd's units and QEMU's file in place")
    units.add_argument(
        "--root", default="/", metavar="PATH", help="the system to install into (default /)"
    )
    units.add_argument(
        "--prefix", default="/usr", metavar="PATH", help="where below it (default /usr)"
    )
    units.add_argument(
        "--binary", metavar="PATH", help="the daemon that the units start (default: this one's)"
    )
    units.add_argument("--remove", action="store_true", help="remove the files again")
    units.add_argument("--dry-run", action="store_true", help="only list the files")
    completion = _add(commands, "completion", "print a shell's completion script", json=False)
    completion.add_argument("shell", choices=tuple(COMPLETION_SCRIPTS))


def _add(
    commands: Commands, name: str, text: str, *, vm: bool = False, json: bool = True
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    # Suppressed where it is not given, it leaves alone what was given before the command.
    _add_where(parser, argparse.SUPPRESS)
    if json:
        parser.add_argument("--json", action="store_true", help="for programs: JSON on one line")
    if vm:
        parser.add_argument("vm", metavar="VM", help="its name, as `list` has it")
    return parser


def _add_where(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--folder",
        default=default,
        metavar="PATH",
        help=f"where the VMs' control sockets are, VM.control each (default {DEFAULT_FOLDER})",
    )
    parser.add_argument(
        "--control-socket", default=default, metavar="PATH", help="that of one VM instead"
    )

"""The command line. Completion and the manual page's tests read it from here, too."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NoReturn

from vhost_balloon import __version__
from vhost_balloon.ctl import text
from vhost_balloon.printable import printable

PROGRAM: Final = "vhost-balloonctl"
DEFAULT_SOCKET: Final = "/run/vhost-balloon/control.sock"
STATS_SECONDS: Final = 3.0
MAX_STATS_SECONDS: Final = 60.0
"""What the daemon's balloon-stats allows."""

MAX_STATS_INTERVAL: Final = 86400.0
FEATURES: Final = {
    "reporting": "free page reporting",
    "deflate-on-oom": "deflation when the guest is out of memory",
    "stats": "guest memory statistics",
    "must-tell-host": "that the guest must ask to take pages back",
    "free-page-hint": "free page hints",
    "page-poison": "the guest's page poison value",
}
"""The daemon's feature switches."""


class Parser(argparse.ArgumentParser):
    """Ends with one line on a mistake, instead of the usage and a line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROGRAM}: {printable(message)}\n")


def size(word: str) -> int:
    """A size as an argument."""
    try:
        return text.parse_size(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def rate(word: str) -> int:
    """Bytes a second as an argument."""
    try:
        return text.parse_rate(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def seconds(most: float = 1e6, *, zero: bool = False) -> Callable[[str], float]:
    """A time limit or interval as an argument: above 0, or 0 too, and at most so many seconds."""
    bound = "from 0" if zero else "above 0 and"

    def convert(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = -1
        if not (0 < value <= most or (zero and value == 0)):
            raise argparse.ArgumentTypeError(
                f"{word!r} is no number of seconds {bound} up to {most:g}"
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
    _add_socket(parser, DEFAULT_SOCKET)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands", parser_class=Parser
    )
    _add_queries(commands)
    _add_orders(commands)
    _add_vms(commands)
    _add_texts(commands)
    return parser


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Read a command line; exits with one line on a mistake, and after --help and --version."""
    parser = build_parser()
    options = parser.parse_args(words)
    if options.command == "set" and options.timeout is not None and not options.wait:
        parser.error("--timeout goes with --wait: a target is accepted at once")
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


def _add_vms(commands: Commands) -> None:
    add = _add(commands, "add", "serve one more VM", vm=True)
    add.add_argument("socket", metavar="SOCKET", help="where its front end will connect")
    add.add_argument(
        "--target", type=size, metavar="SIZE", help="what its guest is to keep from the start on"
    )
    add.add_argument(
        "--stats-interval",
        type=seconds(MAX_STATS_INTERVAL, zero=True),
        metavar="SECONDS",
        help="how often the guest is asked for statistics (0: on demand only)",
    )
    for name, what in FEATURES.items():
        add.add_argument(f"--no-{name}", action="store_true", help=f"do not offer {what}")
    add.add_argument("--discard", choices=("auto", "always", "never"), help="pinned memory, or all")
    add.add_argument(
        "--report-rate",
        type=rate,
        metavar="RATE",
        help="bytes a second that its reports may have discarded, such as 512M/s",
    )
    add.add_argument("--discard-hugetlb", action="store_true", help="discard hugetlb pages too")
    add.add_argument(
        "--discard-other-filesystems",
        action="store_true",
        help="discard memory in files that are on neither tmpfs nor hugetlbfs",
    )
    add.add_argument("--socket-mode", metavar="MODE", help="its permissions, in octal")
    add.add_argument("--socket-group", metavar="GROUP", help="its group")
    _add(commands, "remove", "serve a VM no longer; it has no front end any more", vm=True)
    _add(commands, "reload", "read the daemon's configuration file again")
    _add(commands, "upgrade", "have the daemon re-execute itself as it is installed now")


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
    completion.add_argument("shell", choices=("bash", "zsh"))


def _add(
    commands: Commands, name: str, text: str, *, vm: bool = False, json: bool = True
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    # Suppressed where it is not given, it leaves alone what was given before the command.
    _add_socket(parser, argparse.SUPPRESS)
    if json:
        parser.add_argument("--json", action="store_true", help="for programs: JSON on one line")
    if vm:
        parser.add_argument("vm", metavar="VM", help="its name: that of its socket's file")
    return parser


def _add_socket(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--control-socket",
        default=default,
        metavar="PATH",
        help=f"the daemon's control socket (default {DEFAULT_SOCKET})",
    )


def arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All options and operands of a parser, but the choice of a command.

    argparse has no public way to list them; every tool for completion reads this attribute.
    """
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            yield action


def commands(parser: argparse.ArgumentParser) -> dict[str, tuple[argparse.ArgumentParser, str]]:
    """Each command's own parser and what it does, in the order of --help."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            return {name: (found, helps[name]) for name, found in action.choices.items()}
    return {}

"""The command line. The completion scripts and the manual page are checked against it by tests."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from vhost_balloon import __version__
from vhost_balloon.printable import printable
from vhost_balloon.sizes import implausible, parse_size

PROGRAM: Final = "vhost-balloonctl"
DEFAULT_FOLDER: Final = "/run/vhost-balloon"
DEFAULT_HUB_SOCKET: Final = "/run/vhost-balloon-hub/control"
POLICY_MODES: Final = ("off", "dry-run", "on")
POLICY_SECONDS: Final = 2.0
"""The policy decides so often."""
STATS_SECONDS: Final = 3.0
MAX_STATS_SECONDS: Final = 60.0
"""The limit of the daemon's balloon-stats."""

MAX_HOLD_SECONDS: Final = 365 * 24 * 3600

COMPLETION_SCRIPTS: Final[Mapping[str, str]] = {
    "bash": "vhost-balloonctl.bash",
    "zsh": "_vhost-balloonctl",
}
"""The files in vhost_balloon/completion, by shell. tests/support/completion_scripts.py generates
them."""

_UNIT: Final = "vhost-balloon@web1"
_GONE: Final = {
    "add": f"VMs are added with systemd, for example with `systemctl enable --now {_UNIT}.socket`",
    "remove": "VMs are removed with systemd, for example with "
    f"`systemctl disable --now {_UNIT}.socket {_UNIT}.service`",
}
"""Commands of earlier versions, and what to use instead."""


class Parser(argparse.ArgumentParser):
    """Prints one line on a mistake, without the usage."""

    def error(self, message: str) -> NoReturn:
        for command, instead in _GONE.items():
            if f"COMMAND: invalid choice: {command!r}" in message:
                message = instead
        self.exit(2, f"{PROGRAM}: {printable(message)}\n")


class Size(NamedTuple):
    """An argument that is a size, as it was written and in bytes."""

    text: str
    bytes: int


def size(word: str) -> Size:
    """Convert an argument."""
    try:
        return Size(word, parse_size(word))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def memory(word: str) -> int:
    """Convert an argument to a guest's memory in bytes."""
    found = size(word)
    if (problem := implausible(*found)) is not None:
        raise argparse.ArgumentTypeError(problem)
    return found.bytes


def seconds(most: float = 1e6) -> Callable[[str], float]:
    """Return a converter of an argument to seconds, above 0 and at most `most`."""

    def convert(word: str) -> float:
        try:
            value = float(word)
        except ValueError:
            value = 0
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(
                f"{word!r} is not a number of seconds above 0 and up to {most:g}"
            )
        return value

    return convert


def count(word: str) -> int:
    if not word.isascii() or not word.isdecimal() or not 0 < int(word[:12]) < 10**9:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number from 1 to 999999999")
    return int(word)


def whole_seconds(word: str) -> int:
    if not word.isascii() or not word.isdecimal() or not 0 < int(word[:12]) <= MAX_HOLD_SECONDS:
        raise argparse.ArgumentTypeError(
            f"{word!r} is not a whole number of seconds from 1 to {MAX_HOLD_SECONDS} (a year)"
        )
    return int(word)


def build_parser() -> Parser:
    """Return the parser of the whole command line. The result's `command` names the command."""
    parser = Parser(
        prog=PROGRAM,
        description="Inspect and control the memory balloons of vhost-balloon's VMs.",
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
    _add_policy(commands)
    _add_upkeep(commands)
    _add_texts(commands)
    return parser


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. Exits on a mistake, with one line, and after --help and --version."""
    parser = build_parser()
    options = parser.parse_args(words)
    if options.command == "set":
        _check_set(options, parser)
    if options.command == "policy":
        _check_policy(options, parser)
    if options.command == "policy-release" and (options.vm is not None) == options.all:
        parser.error("policy-release takes either the name of a VM or --all")
    if options.command == "upgrade" and bool(options.vms) == options.all:
        parser.error("upgrade takes either names of VMs or --all")
    if options.command == "reload" and bool(options.vms) + options.all + options.hub != 1:
        parser.error("reload takes either names of VMs or --all or --hub")
    if options.folder is not None and options.control_socket is not None:
        parser.error("--folder and --control-socket exclude each other")
    _find_hub(options)
    if options.folder is None:
        options.folder = DEFAULT_FOLDER
    return options


def _check_set(options: argparse.Namespace, parser: Parser) -> None:
    """Check the arguments of `set`, and leave its size in bytes."""
    if options.timeout is not None and not options.wait:
        parser.error("--timeout requires --wait")
    problem = implausible(*options.size)
    if problem is not None and not options.force:
        parser.error(f"{problem} (--force sets it all the same)")
    options.size = options.size.bytes


def _check_policy(options: argparse.Namespace, parser: Parser) -> None:
    if options.watch and options.explain is not None:
        parser.error("--watch and --explain exclude each other")
    if not options.watch and (options.interval is not None or options.count is not None):
        parser.error("--interval and --count require --watch")
    if options.interval is None:
        options.interval = POLICY_SECONDS


def _find_hub(options: argparse.Namespace) -> None:
    """Set hub_socket, and hub_beside: the hub that `watch` asks beside VMs. The default hub cannot
    know those of another folder."""
    is_default = options.folder is None and options.control_socket is None
    options.hub_beside = options.hub_socket
    if options.hub_socket is None:
        options.hub_socket = DEFAULT_HUB_SOCKET
        options.hub_beside = DEFAULT_HUB_SOCKET if is_default else None


Commands = Any  # argparse's own class for this is private


def _add_queries(commands: Commands) -> None:
    listing = _add(commands, "list", "list all VMs, one a line")
    listing.add_argument("--names", action="store_true", help="print only the names, for scripts")
    _add(commands, "status", "show everything about a VM", vm=True)
    stats = _add(commands, "stats", "ask a guest for its memory statistics", vm=True)
    stats.add_argument("--last", action="store_true", help="show the last sample instead")
    stats.add_argument(
        "--timeout",
        type=seconds(MAX_STATS_SECONDS),
        default=STATS_SECONDS,
        metavar="SECONDS",
        help=f"time limit for the guest (default {STATS_SECONDS:g})",
    )
    watch = _add(commands, "watch", "show a live table of all VMs; q quits")
    watch.add_argument(
        "--interval",
        type=seconds(),
        default=1.0,
        metavar="SECONDS",
        help="time between updates (default 1)",
    )
    watch.add_argument("--count", type=count, metavar="N", help="stop after N updates")


def _add_orders(commands: Commands) -> None:
    order = _add(commands, "set", "set the target: the memory that a guest keeps", vm=True)
    order.add_argument("size", type=size, metavar="SIZE", help="such as 512M, 1.5G or 1073741824")
    order.add_argument("--wait", action="store_true", help="wait until the target is reached")
    order.add_argument("--force", action="store_true", help="set a size below 16 MiB all the same")
    order.add_argument(
        "--timeout", type=seconds(), metavar="SECONDS", help="stop waiting after this time"
    )
    order.add_argument(
        "--hold",
        type=whole_seconds,
        metavar="SECONDS",
        help="how long the host's policy keeps it (default: until policy-release)",
    )
    _add(commands, "pause", "acknowledge a guest's free pages without discarding them", vm=True)
    _add(commands, "resume", "discard a guest's free pages again", vm=True)
    text = "end the connection of a VM's QEMU, which aborts at the guest's next reset"
    _add(commands, "disconnect", text, vm=True)


def _add_policy(commands: Commands) -> None:
    policy = _add(commands, "policy", "show what the policy does with all VMs, and why")
    policy.add_argument("--explain", metavar="VM", help="explain it for this VM, in sentences")
    policy.add_argument("--watch", action="store_true", help="show a live table; q quits")
    policy.add_argument(
        "--interval",
        type=seconds(),
        metavar="SECONDS",
        help=f"time between updates (default {POLICY_SECONDS:g})",
    )
    policy.add_argument("--count", type=count, metavar="N", help="stop after N updates")
    hold = _add(commands, "policy-hold", "keep the policy from moving a VM", vm=True)
    hold.add_argument(
        "--for",
        dest="seconds",
        type=whole_seconds,
        metavar="SECONDS",
        help="end this by itself (default: policy-release ends it)",
    )
    release = _add(commands, "policy-release", "let the policy move a VM again")
    release.add_argument("vm", nargs="?", metavar="VM", help="the VM's name, as shown by `list`")
    release.add_argument(
        "--all", action="store_true", help="all VMs, and raise their targets to their ceilings"
    )
    mode = _add(commands, "policy-mode", "switch the policy, until the hub restarts")
    mode.add_argument("mode", choices=POLICY_MODES, help="dry-run decides and orders nothing")


_UPKEEP: Final = {
    "reload": "make VMs' daemons read their configuration again",
    "upgrade": "make VMs' daemons run the installed program, one after the other",
}


def _add_upkeep(commands: Commands) -> None:
    for name, does in _UPKEEP.items():
        command = _add(commands, name, does)
        command.add_argument("vms", nargs="*", metavar="VM", help="names of VMs")
        command.add_argument("--all", action="store_true", help="all VMs")
        if name == "reload":
            command.add_argument("--hub", action="store_true", help="the hub instead of VMs")


def _add_texts(commands: Commands) -> None:
    arguments = _add(commands, "qemu-args", "print the QEMU options for a VM", vm=True)
    arguments.add_argument(
        "--memory",
        type=memory,
        metavar="SIZE",
        help="the guest's memory (default: the VM's setting, else its present size)",
    )
    monitoring = _add(commands, "monitoring", "print alert rules or a dashboard", json=False)
    monitoring.add_argument(
        "what", choices=("rules", "dashboard"), help="Prometheus alert rules or a Grafana dashboard"
    )
    units = _add(commands, "install-units", "install the systemd units and QEMU's file")
    units.add_argument(
        "--root", default="/", metavar="PATH", help="root of the target system (default /)"
    )
    units.add_argument(
        "--prefix", default="/usr", metavar="PATH", help="prefix below the root (default /usr)"
    )
    units.add_argument(
        "--binary",
        metavar="PATH",
        help="the units' daemon (default: the installed one)",
    )
    units.add_argument("--remove", action="store_true", help="remove the files")
    units.add_argument("--dry-run", action="store_true", help="only list the files")
    completion = _add(commands, "completion", "print a completion script for a shell", json=False)
    completion.add_argument("shell", choices=tuple(COMPLETION_SCRIPTS))


def _add(
    commands: Commands, name: str, text: str, *, vm: bool = False, json: bool = True
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    # SUPPRESS keeps a value that was given before the command.
    _add_where(parser, argparse.SUPPRESS)
    if json:
        parser.add_argument("--json", action="store_true", help="print JSON on one line")
    if vm:
        parser.add_argument("vm", metavar="VM", help="the VM's name, as shown by `list`")
    return parser


def _add_where(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--folder",
        default=default,
        metavar="PATH",
        help=f"folder of the control sockets, VM.control each (default {DEFAULT_FOLDER})",
    )
    parser.add_argument(
        "--control-socket", default=default, metavar="PATH", help="one VM's control socket instead"
    )
    parser.add_argument(
        "--hub-socket",
        default=default,
        metavar="PATH",
        help=f"the hub's control socket (default {DEFAULT_HUB_SOCKET})",
    )

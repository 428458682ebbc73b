"""The rig by hand: `python -m tests.rig provision | boot | demo | versions`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Final

from tests.rig.errors import RigError
from tests.rig.guest import Guest
from tests.rig.human import attach
from tests.rig.memory import Memory, MiB
from tests.rig.provisioning.packages import EVERY_TREE, provision

Options = argparse.Namespace


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; report failure as one line (and logs) without a traceback."""
    options = _parser().parse_args(arguments)
    run: Callable[[Options], int] = options.run
    try:
        return run(options)
    except RigError as error:
        print(f"rig: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.rig", description=__doc__)
    subcommands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (run, text, add_options) in _COMMANDS.items():
        subcommand = subcommands.add_parser(name, help=text, description=text)
        subcommand.set_defaults(run=run)
        add_options(subcommand)
    return parser


def _provision(options: Options) -> int:
    provision(EVERY_TREE)
    return _versions(options)


def _versions(options: Options) -> int:
    provision(EVERY_TREE)
    for tree in EVERY_TREE:
        shown = {name: version for name, version in tree.versions().items() if _counts(name)}
        print(f"{tree.folder}: " + ", ".join(f"{name} {shown[name]}" for name in shown))
    return 0


def _counts(package: str) -> bool:
    """Whether a package is one of the tree's own, not a library below them."""
    return package.startswith(("qemu-system-x86", "linux-image", "busybox", "prometheus"))


def _boot(options: Options) -> int:
    provision()
    guest = Guest(
        options.balloon,
        memory=Memory(options.memory * MiB, options.backing),
        flavour=options.kernel,
        kernel_arguments=options.append,
        human=True,
    )
    with guest:
        print(f"QMP: {guest.folder}/qmp.sock  logs: {guest.folder}", file=sys.stderr)
        attach(guest.console.socket)
    return 0


def _boot_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--balloon",
        metavar="SOCKET",
        help="path of a back end's socket, or 'qemu'; none if left out",
    )
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB")
    parser.add_argument("--backing", choices=("memfd", "hugetlb", "file", "none"), default="memfd")
    parser.add_argument("--kernel", choices=("cloud", "generic"), default="cloud")
    parser.add_argument("--append", default="", help="more kernel arguments")


def _demo(options: Options) -> int:
    from tests.rig import demo
    from vhost_balloon.demo.errors import DemoError  # only this command needs the daemon's packages

    provision()
    try:
        demo.show(options.memory, not options.no_reporting)
    except DemoError as error:
        raise RigError(str(error)) from error
    except KeyboardInterrupt:
        return 130
    return 0


def _demo_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB")
    parser.add_argument("--no-reporting", action="store_true", help="to see the difference")


def _no_options(parser: argparse.ArgumentParser) -> None:
    pass


Command = tuple[Callable[[Options], int], str, Callable[[argparse.ArgumentParser], None]]
_COMMANDS: Final[dict[str, Command]] = {
    "provision": (
        _provision,
        "fetch what guests and Prometheus need into the cache folder",
        _no_options,
    ),
    "versions": (_versions, "show what was fetched", _no_options),
    "demo": (_demo, "show freed memory come back from a real guest, as a picture", _demo_options),
    "boot": (_boot, "boot a guest and give you its console", _boot_options),
}

if __name__ == "__main__":
    sys.exit(main())

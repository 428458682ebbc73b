"""The common parts of the daemon's and the hub's command lines."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from vhost_balloon import __version__
from vhost_balloon.errors import OperatorError
from vhost_balloon.log.output import print_out
from vhost_balloon.setting_kinds import PERMISSIONS


class Parser(argparse.ArgumentParser):
    """Reports a mistake as an OperatorError of one line, without the usage."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    def error(self, message: str) -> None:  # type: ignore[override]
        raise OperatorError(message)

    def _print_message(self, message: str, file: object = None) -> None:
        print_out(message)


def reader(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """read as an argparse type: argparse shows the text of an ArgumentTypeError only."""

    def read_option(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read_option


def add_control_access(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--control-mode",
        type=reader(PERMISSIONS.read_option),
        default=0o600,
        metavar="MODE",
        help="permissions of the control socket (octal, default 0600)",
    )
    group.add_argument("--control-group", metavar="GROUP", help="group of the control socket")


def add_log_options(parser: argparse.ArgumentParser) -> None:
    log = parser.add_argument_group("log")
    levels = ("debug", "info", "warning", "error")
    log.add_argument("--log-level", choices=levels, default="info")
    log.add_argument("--log-format", choices=("text", "json"), default="text")

"""The common part of the daemon's and the hub's command lines."""

from __future__ import annotations

import argparse

from vhost_balloon import __version__
from vhost_balloon.errors import OperatorError
from vhost_balloon.log.output import print_out


class Parser(argparse.ArgumentParser):
    """Reports a mistake as an OperatorError of one line, without the usage."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(prog=prog, description=description, allow_abbrev=False)
        self.add_argument("--version", action="version", version=f"%(prog)s {__version__}")

    def error(self, message: str) -> None:  # type: ignore[override]
        raise OperatorError(message)

    def _print_message(self, message: str, file: object = None) -> None:
        print_out(message)


def add_log_options(parser: argparse.ArgumentParser) -> None:
    log = parser.add_argument_group("log")
    levels = ("debug", "info", "warning", "error")
    log.add_argument("--log-level", choices=levels, default="info")
    log.add_argument("--log-format", choices=("text", "json"), default="text")

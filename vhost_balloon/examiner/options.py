"""The examiner's command line."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from protocol.examiner import PATH
from vhost_balloon.config.option_parser import Parser, add_log_options
from vhost_balloon.errors import OperatorError
from vhost_balloon.service.handed_over import METRICS


@dataclass(frozen=True, slots=True)
class ExaminerOptions:
    """The examiner's configuration. socket_path: None if the socket was handed over."""

    socket_path: Path | None
    log_level: str
    log_format: str


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="vhost-balloon-examiner",
        description="Looks, for the daemons of all VMs, whether QEMU has guest memory pinned.",
    )
    parser.add_argument(
        "--socket-path",
        type=_read_path,
        metavar="PATH",
        help=f"where to listen; daemons ask at {PATH}",
    )
    add_log_options(parser)
    return parser


def _read_path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text).absolute()


def parse(arguments: list[str], handed: Collection[str] = ()) -> ExaminerOptions:
    """Read the command line; handed: names of the sockets that were handed over.

    Raises OperatorError with one line of text, or exits after --version and the like.
    """
    options = build_parser().parse_args(arguments)
    if len(handed) > 1:
        raise OperatorError(f"{len(handed)} sockets were handed over instead of one")
    if METRICS in handed:
        raise OperatorError(f"{METRICS!r} was handed over, but the examiner has no metrics")
    if bool(handed) == (options.socket_path is not None):
        raise OperatorError(
            "a socket was handed over, so --socket-path is not possible"
            if handed
            else "there is no socket: use --socket-path=PATH"
        )
    return ExaminerOptions(options.socket_path, options.log_level, options.log_format)

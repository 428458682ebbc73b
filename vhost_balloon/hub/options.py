"""The hub's command line."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vhost_balloon.config.option_parser import Parser, add_log_options
from vhost_balloon.errors import OperatorError
from vhost_balloon.metrics.options import (
    MetricsOptions,
    add_metrics_options,
    read_metrics_options,
)

FOLDER: Final = Path("/run/vhost-balloon")
ADDRESS: Final = ("127.0.0.1", 9750)


@dataclass(frozen=True, slots=True)
class HubOptions:
    """The hub's configuration. folders: those of control sockets, absolute."""

    folders: tuple[Path, ...]
    metrics: MetricsOptions
    log_level: str
    log_format: str


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="vhost-balloon-hub",
        description="Serves Prometheus the metrics of all VMs on a host that use vhost-balloon.",
    )
    parser.add_argument(
        "--folder",
        type=_read_folder,
        action="append",
        metavar="PATH",
        help=f"folder of the VMs' control sockets NAME.control; may be repeated (default {FOLDER})",
    )
    add_metrics_options(parser, "{}:{}".format(*ADDRESS))
    add_log_options(parser)
    return parser


def _read_folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the folder's name is empty")
    return Path(text).absolute()


def parse(arguments: list[str], *, is_handed_over: bool = False) -> HubOptions:
    """Read the command line; is_handed_over: whether a socket for metrics was.

    Raises OperatorError with one line of text, or exits after --version and the like.
    """
    options = build_parser().parse_args(arguments)
    folders = tuple(dict.fromkeys(options.folder or [FOLDER]))
    for folder in folders:
        # A folder that does not exist may be created later.
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise OperatorError(f"--folder={folder} is not a folder")
    if not is_handed_over and options.metrics_address is None:
        options.metrics_address = ADDRESS
    metrics = read_metrics_options(options, is_handed_over)
    assert metrics is not None
    return HubOptions(folders, metrics, options.log_level, options.log_format)

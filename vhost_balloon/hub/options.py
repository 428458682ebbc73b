"""The hub's command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vhost_balloon.config.option_parser import Parser, add_control_access, add_log_options
from vhost_balloon.errors import OperatorError
from vhost_balloon.metrics.options import (
    MetricsOptions,
    add_metrics_options,
    read_metrics_options,
)
from vhost_balloon.service.listeners import SocketOptions

FOLDER: Final = Path("/run/vhost-balloon")
ADDRESS: Final = ("127.0.0.1", 9750)
RUN_FOLDERS: Final = "RUNTIME_DIRECTORY"
"""The variable with the folders of RuntimeDirectory=, separated by colons (systemd.exec(5))."""


@dataclass(frozen=True, slots=True)
class HubOptions:
    """The hub's configuration.

    folders: those of the VMs' control sockets. files: those of --config, later ones win.
    run_folder: for the hub's own control socket and memory; None for neither. check_only: serve
    nothing. All paths are absolute.
    """

    folders: tuple[Path, ...]
    metrics: MetricsOptions
    log_level: str
    log_format: str
    files: tuple[Path, ...] = ()
    run_folder: Path | None = None
    control_access: SocketOptions = field(default_factory=SocketOptions)
    check_only: bool = False


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="vhost-balloon-hub",
        description="Serves Prometheus the metrics of all VMs on a host that use vhost-balloon, "
        "and moves memory between them if it is told to.",
    )
    parser.add_argument(
        "--folder",
        type=_read_folder,
        action="append",
        metavar="PATH",
        help=f"folder of the VMs' control sockets NAME.control; may be repeated (default {FOLDER})",
    )
    parser.add_argument(
        "--config",
        type=lambda text: Path(text).absolute(),
        action="append",
        default=[],
        metavar="FILE",
        help="the policy's settings (TOML), read again on SIGHUP; may be repeated, later files win "
        "(default: the policy is off)",
    )
    parser.add_argument(
        "--check-config",
        action="store_true",
        help="check options, files and addresses without serving anything, and exit",
    )
    control = parser.add_argument_group("control")
    control.add_argument(
        "--run-folder",
        type=_read_folder,
        metavar="PATH",
        help="folder of the hub's control socket and the policy's memory (default: "
        f"${RUN_FOLDERS}; without, there is neither)",
    )
    add_control_access(control)
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
    folders = _distinct(options.folder or [FOLDER])
    for folder in folders:
        # A folder that does not exist may be created later.
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise OperatorError(f"--folder={folder} is not a folder")
    if not is_handed_over and options.metrics_address is None:
        options.metrics_address = ADDRESS
    metrics = read_metrics_options(options, is_handed_over)
    assert metrics is not None
    return HubOptions(
        folders,
        metrics,
        options.log_level,
        options.log_format,
        files=tuple(options.config),
        run_folder=_run_folder(options.run_folder),
        control_access=SocketOptions(options.control_mode, options.control_group),
        check_only=options.check_config,
    )


def _distinct(folders: Iterable[Path]) -> tuple[Path, ...]:
    """Leave out other paths of the same folder: each of its VMs would be found twice."""
    found: dict[object, Path] = {}
    for folder in folders:
        try:
            info = os.stat(folder)
        except OSError:
            found.setdefault(folder, folder)  # it may be created later
        else:
            found.setdefault((info.st_dev, info.st_ino), folder)
    return tuple(found.values())


def _run_folder(given: Path | None) -> Path | None:
    """Raises OperatorError."""
    first = os.environ.get(RUN_FOLDERS, "").partition(":")[0]
    path = given or (Path(first).absolute() if first else None)
    if path is not None and not os.path.isdir(path):
        raise OperatorError(f"the run folder {path} is not a folder")
    return path

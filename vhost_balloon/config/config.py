"""The daemon's configuration: command line and files combined, checked and frozen."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vhost_balloon.config.command_line import build_parser, read_settings
from vhost_balloon.config.file import read_files
from vhost_balloon.errors import OperatorError
from vhost_balloon.metrics.options import MetricsOptions, read_metrics_options
from vhost_balloon.service.environment import UNNAMED
from vhost_balloon.service.handed_over import CONTROL, METRICS, RESERVED_NAMES
from vhost_balloon.service.listeners import SocketOptions
from vhost_balloon.vm.names import name_from_file, read_name
from vhost_balloon.vm.settings import VmSettings

FRONT_END: Final = "front-end"
"""FileDescriptorName= in our units; it does not name the VM."""

_ONE_EACH: Final = (
    "this daemon serves one VM: start one vhost-balloon for each "
    "(under systemd vhost-balloon@NAME.socket)"
)


@dataclass(frozen=True, slots=True)
class Config:
    """The VM, and how its daemon serves it.

    name: the VM's; "" only with check_only, if nothing names it. socket_path: where the front end
    connects, absolute; None with fd. fd: a connected front end. settings: those of the command
    line, overridden by the files; base: those of the command line alone. files: absolute, later
    ones win. check_only: serve nothing. arguments: the command line it was made from.
    """

    name: str
    socket_path: Path | None
    fd: int | None
    settings: VmSettings
    base: VmSettings
    files: tuple[Path, ...]
    control_socket: Path | None
    control_access: SocketOptions
    metrics: MetricsOptions | None
    log_level: str
    log_format: str
    check_only: bool = False
    arguments: tuple[str, ...] = ()

    @property
    def control_path(self) -> Path | None:
        """The control socket's absolute path."""
        return None if self.control_socket is None else self.control_socket.absolute()


def parse(
    arguments: list[str],
    handed: Mapping[str, Path | None] | None = None,
    *,
    settings: VmSettings | None = None,
) -> Config:
    """Read the command line and its files.

    handed: names and paths of the sockets that were handed over. settings: those of the
    previous process, used instead of reading the files.
    Raises OperatorError with one line of text, or exits after --version and the like.
    """
    options = build_parser().parse_args(arguments)
    handed = handed or {}
    fd = options.fd[0] if options.fd else None
    socket_path, handed_over = _front_end(options, handed)
    if socket_path is None and fd is None and not options.check_config:
        raise OperatorError(
            "no front end: give --socket-path=PATH or --fd=N, or have a socket handed over "
            "(under systemd vhost-balloon@NAME.socket)"
        )
    control = _control(options, handed)
    if control is not None and socket_path is not None and _is_same(control, socket_path):
        raise OperatorError(
            f"front end and control socket have the same path {control}: "
            "give --control-socket another path"
        )
    base = read_settings(options)
    return Config(
        name=options.name or _default_name(options, socket_path, handed_over),
        socket_path=socket_path,
        fd=fd,
        settings=read_files(options.config, base) if settings is None else settings,
        base=base,
        files=tuple(options.config),
        control_socket=control,
        control_access=SocketOptions(options.control_mode, options.control_group),
        metrics=read_metrics_options(options, METRICS in handed),
        log_level=options.log_level,
        log_format=options.log_format,
        check_only=options.check_config,
        arguments=tuple(arguments),
    )


def _front_end(
    options: argparse.Namespace, handed: Mapping[str, Path | None]
) -> tuple[Path | None, str | None]:
    """Where the front end connects, and the socket's name if it was handed over."""
    given = [path.absolute() for path in options.socket_path]
    sockets = {name: path for name, path in handed.items() if name not in RESERVED_NAMES}
    if len(given) > 1:
        raise OperatorError(f"more than one --socket-path: {_ONE_EACH}")
    if len(options.fd) > 1:
        raise OperatorError(f"more than one --fd: {_ONE_EACH}")
    if len(sockets) > 1:
        raise OperatorError(f"front-end sockets {', '.join(sockets)} were handed over: {_ONE_EACH}")
    if options.fd and (given or sockets):
        raise OperatorError(f"both --fd and another front-end socket: {_ONE_EACH}")
    for name, path in sockets.items():
        if path is None:
            raise OperatorError(f"{name!r} was handed over without a path")
        if given and not _is_same(given[0], path):
            raise OperatorError(
                f"--socket-path={given[0]}, but {path} was handed over: leave out the option"
            )
        return path.absolute(), name
    return (given[0] if given else None), None


def _default_name(
    options: argparse.Namespace, socket_path: Path | None, handed_over: str | None
) -> str:
    """The VM's name without --name. Raises OperatorError."""
    if options.fd:
        return f"fd{options.fd[0]}"
    if socket_path is None:
        return ""
    if handed_over in (None, "", UNNAMED, FRONT_END):
        # As given: made absolute, the path "" or "." would end in the name of a folder.
        name = name_from_file(socket_path if handed_over is not None else options.socket_path[0])
    else:
        name = handed_over
    try:
        return read_name(name)
    except ValueError as error:
        raise OperatorError(f"the VM's name {error}: choose one with --name=NAME") from None


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same place; the files need not exist."""
    return _resolved(one) == _resolved(other)


def _resolved(path: Path) -> tuple[str, str]:
    return os.path.realpath(path.parent), path.name


def _control(options: argparse.Namespace, handed: Mapping[str, Path | None]) -> Path | None:
    given: Path | None = options.control_socket
    if CONTROL not in handed:
        return given
    path = handed[CONTROL]
    if given is not None and (path is None or not _is_same(given, path)):
        raise OperatorError(
            f"--control-socket={given}, but {path} was handed over: leave out the option"
        )
    return path

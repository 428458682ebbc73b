"""The daemon's configuration: command line and files combined, checked and frozen."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vhost_balloon.config.command_line import build_parser, read_settings
from vhost_balloon.config.file import read_files
from vhost_balloon.config.sockets import Sockets, choose_sockets
from vhost_balloon.errors import OperatorError
from vhost_balloon.metrics.options import MetricsOptions, read_metrics_options
from vhost_balloon.service.handed_over import METRICS
from vhost_balloon.service.listeners import SocketOptions
from vhost_balloon.vm.names import name_from_file, read_name
from vhost_balloon.vm.settings import VmSettings


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
    sockets = choose_sockets(options, handed)
    if sockets.front_end is None and fd is None and not options.check_config:
        raise OperatorError(
            "no front end: give --socket-path=PATH or --fd=N, or have a socket handed over "
            "(under systemd vhost-balloon@NAME.socket)"
        )
    base = read_settings(options)
    return Config(
        name=options.name or _default_name(options, sockets),
        socket_path=sockets.front_end,
        fd=fd,
        settings=read_files(options.config, base) if settings is None else settings,
        base=base,
        files=tuple(options.config),
        control_socket=sockets.control,
        control_access=SocketOptions(options.control_mode, options.control_group),
        metrics=read_metrics_options(options, METRICS in handed or _expects_metrics(options)),
        log_level=options.log_level,
        log_format=options.log_format,
        check_only=options.check_config,
        arguments=tuple(arguments),
    )


def _expects_metrics(options: argparse.Namespace) -> bool:
    """Whether a check has to take it that a socket for metrics will be handed over: systemd hands
    none to ExecReload=."""
    is_tls = options.metrics_certificate is not None
    return options.check_config and is_tls and options.metrics_address is None


def _default_name(options: argparse.Namespace, sockets: Sockets) -> str:
    """The VM's name without --name. Raises OperatorError."""
    if options.fd:
        return f"fd{options.fd[0]}"
    if sockets.front_end is None:
        return ""
    # As given: made absolute, the path "" or "." would end in the name of a folder.
    path = sockets.front_end if sockets.handed_over else options.socket_path[0]
    try:
        return read_name(sockets.name or name_from_file(path))
    except ValueError as error:
        raise OperatorError(f"the VM's name {error}: choose one with --name=NAME") from None

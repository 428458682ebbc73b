"""The daemon's configuration: made from the command line, checked, then frozen."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vhost_balloon.command_line import build_parser
from vhost_balloon.config_file import ConfigFile, read_config_file
from vhost_balloon.errors import OperatorError
from vhost_balloon.guest_memory import DiscardMode, DiscardPolicy
from vhost_balloon.vm_settings import (
    SWITCHES,
    SettingError,
    SocketOptions,
    VmSettings,
)
from vhost_balloon.vm_spec import CONTROL, METRICS, RESERVED_NAMES, Origin, VmSpec, read_id


@dataclass(frozen=True, slots=True)
class MetricsOptions:
    """Where Prometheus is answered, and with which files if by TLS."""

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None

    @property
    def address(self) -> str:
        """HOST:PORT as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Config:
    """vms: those of the command line and of the file; one without a socket is fd's, and alone.

    defaults: the settings that the command line gives to every VM. mistake: why the file says
    nothing, where the VMs that the process before this one left are to go on without it.
    check_only: nothing is to be served. arguments: the command line that it was made from.
    """

    vms: tuple[VmSpec, ...]
    file: ConfigFile | None
    fd: int | None
    defaults: VmSettings
    control_socket: Path | None
    control_access: SocketOptions
    allow_unsealed_memory: bool
    metrics: MetricsOptions | None
    log_level: str
    log_format: str
    check_only: bool = False
    mistake: str | None = None
    arguments: tuple[str, ...] = ()

    @property
    def control_path(self) -> Path | None:
        """The control socket's absolute path."""
        return None if self.control_socket is None else self.control_socket.absolute()


def parse(
    arguments: list[str],
    handed: Mapping[str, Path | None] | None = None,
    *,
    is_restart: bool = False,
) -> Config:
    """Read the command line; handed: sockets that were handed over, their names and paths.

    is_restart: VMs were left. Their guests wait, so a mistake in the file is no reason to end, and
    neither is it that there are no others.
    Raises OperatorError with one line, or exits after --version and the like.
    """
    options = build_parser().parse_args(arguments)
    handed = handed or {}
    sockets = {name: path for name, path in handed.items() if name not in RESERVED_NAMES}
    options.socket_path = [p for p in options.socket_path if p.absolute() not in sockets.values()]
    options.control_socket = _control(options, handed)
    if options.fd is not None and (options.socket_path or sockets):
        raise OperatorError("--fd and other front-end sockets cannot be used together")
    if options.fd is not None and options.config is not None:
        raise OperatorError("--fd and --config cannot be used together")
    defaults = _settings(options)
    file, mistake = None, None
    if options.config is not None:
        try:
            file = _file(options, defaults, sockets)
        except OperatorError as error:
            if not is_restart:
                raise
            file, mistake = ConfigFile.unread(options.config, defaults), str(error)
    vms = _vms(options, defaults, sockets, file)
    has_vms = vms or (file and file.vms) or is_restart or options.check_config
    if not has_vms and options.control_socket is None:
        raise OperatorError(
            "no VM: give --socket-path=PATH (may be repeated), --fd=N, a --config with VMs, or a "
            "--control-socket by which VMs can be added"
        )
    config = Config(
        vms=vms if file is None else vms + file.vms,
        file=file,
        fd=options.fd,
        defaults=defaults,
        control_socket=options.control_socket,
        control_access=SocketOptions(options.control_mode, options.control_group),
        allow_unsealed_memory=options.allow_unsealed_memory,
        metrics=_metrics(options, METRICS in handed),
        log_level=options.log_level,
        log_format=options.log_format,
        check_only=options.check_config,
        mistake=mistake,
        arguments=tuple(arguments),
    )
    _check_names(config)
    return config


def _settings(options: argparse.Namespace) -> VmSettings:
    offered = sum(
        int(bit)
        for name, (bit, _) in SWITCHES.items()
        if not getattr(options, f"no_{name.replace('-', '_')}")
    )
    return VmSettings(
        offered=offered,
        policy=DiscardPolicy(
            DiscardMode(options.discard),
            options.discard_hugetlb,
            options.discard_other_filesystems,
        ),
        stats_interval=options.stats_interval,
        report_rate=options.report_rate,
        access=SocketOptions(options.socket_mode, options.socket_group),
    )


def _vms(
    options: argparse.Namespace,
    settings: VmSettings,
    handed: Mapping[str, Path | None],
    file: ConfigFile | None,
) -> tuple[VmSpec, ...]:
    if options.fd is not None:
        return (VmSpec(f"fd{options.fd}", settings),)
    in_file = {vm.socket_path for vm in file.vms} if file else set()
    specs = [
        VmSpec(name, settings, path, Origin.HANDED_OVER)
        for name, path in handed.items()
        if path not in in_file
    ]
    specs += [VmSpec(path.stem, settings, path.absolute()) for path in options.socket_path]
    return tuple(specs)


def _file(
    options: argparse.Namespace, defaults: VmSettings, handed: Mapping[str, Path | None]
) -> ConfigFile:
    """Read it, and check it against what else is asked for. Raises OperatorError."""
    file = read_config_file(options.config, defaults)
    control = options.control_socket
    others = _vms(options, defaults, handed, file)
    file.check_against(others, None if control is None else control.absolute())
    return file


def _control(options: argparse.Namespace, handed: Mapping[str, Path | None]) -> Path | None:
    given: Path | None = options.control_socket
    if CONTROL not in handed:
        return given
    if given is not None and given.absolute() != handed[CONTROL]:
        raise OperatorError(f"--control-socket={given}, and another one was handed over")
    return handed[CONTROL]


def _metrics(options: argparse.Namespace, handed: bool) -> MetricsOptions | None:
    files = (options.metrics_certificate, options.metrics_key, options.metrics_client_ca)
    if handed and options.metrics_address is not None:
        raise OperatorError("--metrics-address, and a socket for metrics was handed over")
    if options.metrics_address is None and not handed:
        if any(files):
            raise OperatorError("TLS for metrics without --metrics-address")
        return None
    if options.metrics_certificate is None and any(files):
        raise OperatorError("TLS for metrics without --metrics-certificate")
    host, port = options.metrics_address or (METRICS, 0)
    return MetricsOptions(host, port, *files)


def _check_names(config: Config) -> None:
    vms = [vm for vm in config.vms if vm.origin is not Origin.CONFIG]
    names = [vm.id for vm in vms]
    for name in names:
        if names.count(name) > 1:
            raise OperatorError(f"two VMs are named {name!r} (a VM is named after its socket)")
        try:
            read_id(name)
        except SettingError as error:
            raise OperatorError(f"the name of a VM {error.text}") from None
    control = config.control_path
    if control is not None and control in [vm.socket_path for vm in vms]:
        raise OperatorError(f"{control} is given for two sockets")

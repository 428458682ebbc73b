"""The daemon's configuration: made from the command line, checked, then frozen."""

from __future__ import annotations

import argparse
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
from vhost_balloon.vm_spec import Origin, VmSpec, read_id


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

    defaults: the settings that the command line gives to every VM.
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

    @property
    def control_path(self) -> Path | None:
        """The control socket's absolute path."""
        return None if self.control_socket is None else self.control_socket.absolute()


def parse(arguments: list[str]) -> Config:
    """Raises OperatorError with one line, or exits after --version and the like."""
    options = build_parser().parse_args(arguments)
    if options.fd is not None and options.socket_path:
        raise OperatorError("--fd and --socket-path cannot be used together")
    if options.fd is not None and options.config is not None:
        raise OperatorError("--fd and --config cannot be used together")
    defaults = _settings(options)
    file = None if options.config is None else read_config_file(options.config, defaults)
    vms = _vms(options, defaults)
    if not vms and not (file and file.vms) and options.control_socket is None:
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
        metrics=_metrics(options),
        log_level=options.log_level,
        log_format=options.log_format,
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
        access=SocketOptions(options.socket_mode, options.socket_group),
    )


def _vms(options: argparse.Namespace, settings: VmSettings) -> tuple[VmSpec, ...]:
    if options.fd is not None:
        return (VmSpec(f"fd{options.fd}", settings),)
    return tuple(VmSpec(path.stem, settings, path.absolute()) for path in options.socket_path)


def _metrics(options: argparse.Namespace) -> MetricsOptions | None:
    files = (options.metrics_certificate, options.metrics_key, options.metrics_client_ca)
    if options.metrics_address is None:
        if any(files):
            raise OperatorError("TLS for metrics without --metrics-address")
        return None
    if options.metrics_certificate is None and any(files):
        raise OperatorError("TLS for metrics without --metrics-certificate")
    host, port = options.metrics_address
    return MetricsOptions(host, port, *files)


def _check_names(config: Config) -> None:
    vms = [vm for vm in config.vms if vm.origin is Origin.COMMAND_LINE]
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
    if config.file is not None:
        config.file.check_against(vms, control)

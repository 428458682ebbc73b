"""The daemon's configuration: made from the command line, checked, then frozen."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vhost_balloon import __version__
from vhost_balloon.config_file import ConfigFile, read_config_file
from vhost_balloon.errors import OperatorError
from vhost_balloon.guest_memory import DiscardMode, DiscardPolicy
from vhost_balloon.vm_settings import (
    MAX_STATS_INTERVAL,
    SWITCHES,
    SettingError,
    SocketOptions,
    VmSettings,
    read_mode,
)
from vhost_balloon.vm_spec import Origin, VmSpec, read_id

LOOPBACK: Final = "127.0.0.1"
_ADDRESS: Final = re.compile(r"(\[(?P<ipv6>[^][]+)\]|(?P<host>[^][:\s]*)):(?P<port>[0-9]{1,5})")

CAPABILITIES: Final = {"type": "balloon"}
"""QEMU docs/interop/vhost-user.json, VhostUserBackendCapabilities."""


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


class _Parser(argparse.ArgumentParser):
    """Ends with one line on a mistake, instead of the usage and a line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise OperatorError(message)


class _PrintCapabilities(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(json.dumps(CAPABILITIES))
        parser.exit()


def _absolute(text: str) -> Path:
    return Path(text).absolute()


def _mode(text: str) -> int:
    try:
        return read_mode(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds <= MAX_STATS_INTERVAL:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of seconds from 0 to {MAX_STATS_INTERVAL:.0f}"
        )
    return seconds


def _address(text: str) -> tuple[str, int]:
    """HOST:PORT, an IPv6 address in brackets; without a host it is this one's loopback."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > 0xFFFF:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no HOST:PORT such as 127.0.0.1:9750 or [::1]:9750"
        )
    return match["ipv6"] or match["host"] or LOOPBACK, int(match["port"])


def build_parser() -> argparse.ArgumentParser:
    """The daemon's command line."""
    parser = _Parser(
        prog="vhost-balloon",
        description="A vhost-user back end that gives KVM guests a virtio memory balloon.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "--print-capabilities",
        action=_PrintCapabilities,
        nargs=0,
        help="print the back end's capabilities as JSON and exit",
    )
    vms = parser.add_argument_group("virtual machines")
    vms.add_argument(
        "--socket-path",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="listen here for a front end; may be repeated, one VM each, named after the file",
    )
    vms.add_argument(
        "--fd",
        type=int,
        metavar="N",
        help="serve this connected front-end socket (whose process cannot be told: see --discard)",
    )
    vms.add_argument(
        "--config",
        type=_absolute,
        metavar="FILE",
        help="VMs and their settings (TOML), read again by vhost-balloonctl reload",
    )
    _add_access(vms, "socket", "front-end sockets")
    control = parser.add_argument_group("control")
    control.add_argument(
        "--control-socket", type=Path, metavar="PATH", help="listen here for QMP clients"
    )
    _add_access(control, "control", "the control socket")
    control.add_argument(
        "--stats-interval",
        type=_interval,
        default=10.0,
        metavar="SECONDS",
        help="how often guests are asked for statistics (default 10; 0: on demand only)",
    )
    _add_metrics(parser)
    features = parser.add_argument_group("features, all offered by default")
    for name, (_, text) in SWITCHES.items():
        features.add_argument(f"--no-{name}", action="store_true", help=f"do not offer {text}")
    _add_memory(parser)
    log = parser.add_argument_group("log")
    levels = ("debug", "info", "warning", "error")
    log.add_argument("--log-level", choices=levels, default="info")
    log.add_argument("--log-format", choices=("text", "json"), default="text")
    return parser


def _add_access(group: argparse._ArgumentGroup, prefix: str, what: str) -> None:
    group.add_argument(
        f"--{prefix}-mode",
        type=_mode,
        default=0o600,
        metavar="MODE",
        help=f"permissions of {what} (octal, default 0600)",
    )
    group.add_argument(f"--{prefix}-group", metavar="GROUP", help=f"group of {what}")


def _add_metrics(parser: argparse.ArgumentParser) -> None:
    metrics = parser.add_argument_group("metrics")
    metrics.add_argument(
        "--metrics-address",
        type=_address,
        metavar="HOST:PORT",
        help="answer Prometheus here, by HTTP; without HOST on 127.0.0.1 (default: nowhere)",
    )
    metrics.add_argument(
        "--metrics-certificate",
        type=Path,
        metavar="FILE",
        help="answer by HTTPS, with this certificate and its chain (PEM)",
    )
    metrics.add_argument(
        "--metrics-key",
        type=Path,
        metavar="FILE",
        help="its key (PEM), if it is not in the certificate's file",
    )
    metrics.add_argument(
        "--metrics-client-ca",
        type=Path,
        metavar="FILE",
        help="answer only clients with a certificate of this authority (PEM)",
    )


def _add_memory(parser: argparse.ArgumentParser) -> None:
    memory = parser.add_argument_group("guest memory")
    memory.add_argument(
        "--discard",
        choices=[mode.value for mode in DiscardMode],
        default=DiscardMode.AUTO.value,
        help="auto (default): not while the front end has memory pinned for passed-through "
        "devices; always: without looking; never: acknowledge and discard nothing",
    )
    memory.add_argument(
        "--discard-hugetlb",
        action="store_true",
        help="discard hugetlb pages too: a guest dies if it touches one again while the host's "
        "pool is empty",
    )
    memory.add_argument(
        "--discard-other-filesystems",
        action="store_true",
        help="discard memory in files that are on neither tmpfs nor hugetlbfs",
    )
    memory.add_argument(
        "--allow-unsealed-memory",
        action="store_true",
        help="serve several VMs although one of them could truncate its memory and so end all",
    )


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

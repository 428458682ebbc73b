"""The options of the metrics address, which the daemon and the hub share."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vhost_balloon.errors import OperatorError
from vhost_balloon.service.handed_over import METRICS

_LOOPBACK: Final = "127.0.0.1"
_ADDRESS: Final = re.compile(r"(\[(?P<ipv6>[^][]+)\]|(?P<host>[^][:\s]*)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class MetricsOptions:
    """The metrics address, and the files for TLS if it is used."""

    host: str
    port: int
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None

    @property
    def address(self) -> str:
        """HOST:PORT as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def add_metrics_options(parser: argparse.ArgumentParser, default: str = "nowhere") -> None:
    """default: the address used without --metrics-address, as --help shows it."""
    metrics = parser.add_argument_group("metrics")
    metrics.add_argument(
        "--metrics-address",
        type=_read_address,
        metavar="HOST:PORT",
        help=f"serve metrics to Prometheus here, by HTTP; HOST is 127.0.0.1 if left out "
        f"(default {default})",
    )
    metrics.add_argument(
        "--metrics-certificate",
        type=Path,
        metavar="FILE",
        help="use HTTPS with this certificate and its chain (PEM)",
    )
    metrics.add_argument(
        "--metrics-key",
        type=Path,
        metavar="FILE",
        help="the certificate's key (PEM), if it is in another file",
    )
    metrics.add_argument(
        "--metrics-client-ca",
        type=Path,
        metavar="FILE",
        help="accept only clients with a certificate of this authority (PEM)",
    )


def _read_address(text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT. An IPv6 address is in brackets; no host means loopback."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > 0xFFFF:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not HOST:PORT, such as 127.0.0.1:9750 or [::1]:9750"
        )
    return match["ipv6"] or match["host"] or _LOOPBACK, int(match["port"])


def read_metrics_options(options: argparse.Namespace, handed: bool) -> MetricsOptions | None:
    """None without metrics. handed: a socket for them was handed over. Raises OperatorError."""
    files = (options.metrics_certificate, options.metrics_key, options.metrics_client_ca)
    if handed and options.metrics_address is not None:
        raise OperatorError("--metrics-address given, but a socket for metrics was handed over")
    if options.metrics_address is None and not handed:
        if any(files):
            raise OperatorError("TLS for metrics needs --metrics-address")
        return None
    if options.metrics_certificate is None and any(files):
        raise OperatorError("TLS for metrics needs --metrics-certificate")
    host, port = options.metrics_address or (METRICS, 0)
    return MetricsOptions(host, port, *files)

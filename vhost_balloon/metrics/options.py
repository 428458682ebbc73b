"""Where Prometheus is answered: the options for it, and what they say."""

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


def add_metrics_options(parser: argparse.ArgumentParser, default: str = "nowhere") -> None:
    """default: the address that is meant without --metrics-address."""
    metrics = parser.add_argument_group("metrics")
    metrics.add_argument(
        "--metrics-address",
        type=_read_address,
        metavar="HOST:PORT",
        help=f"answer Prometheus here, by HTTP; without HOST on 127.0.0.1 (default {default})",
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


def _read_address(text: str) -> tuple[str, int]:
    """HOST:PORT, an IPv6 address in brackets; without a host it is this one's loopback."""
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) > 0xFFFF:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no HOST:PORT such as 127.0.0.1:9750 or [::1]:9750"
        )
    return match["ipv6"] or match["host"] or _LOOPBACK, int(match["port"])


def read_metrics_options(options: argparse.Namespace, handed: bool) -> MetricsOptions | None:
    """None if nobody asked for metrics; handed: a socket for them was handed over.

    Raises OperatorError.
    """
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

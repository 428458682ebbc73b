"""TLS for the metrics address. A renewed certificate is loaded without a restart."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Final

from vhost_balloon.errors import OperatorError
from vhost_balloon.log.lines import logger


class Certificates:
    """The current certificate (with its chain) and its key on disk.

    client_ca: accept only clients with a certificate of this authority, if given.
    Raises OperatorError if the files cannot be used at the start.
    """

    def __init__(self, certificate: Path, key: Path | None, client_ca: Path | None) -> None:
        self._certificate: Final = certificate
        self._key: Final = key
        self._client_ca: Final = client_ca
        self._seen = self._look()
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """The context for the next connection. Unusable files leave the previous ones in use."""
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            try:
                self._context = self._load()
            except OperatorError as error:
                logger.warning("%s; the previous certificate is still used", error)
            else:
                logger.info("loaded the new certificate in %s", self._certificate)
        return self._context

    def _look(self) -> list[tuple[int, int, int] | None]:
        """Identities of the files, which change when a file is replaced or written."""
        files = (self._certificate, self._key, self._client_ca)
        return [_identity(path) for path in files if path is not None]

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        files = [p for p in (self._certificate, self._key, self._client_ca) if p is not None]
        for path in files:
            if path.exists() and not path.is_file():  # OpenSSL would wait for the writer of a FIFO
                raise OperatorError(f"{path} is not a regular file")
        try:
            context.load_cert_chain(self._certificate, self._key, password=_no_password)
            if self._client_ca is not None:
                context.load_verify_locations(self._client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except OSError as error:  # ssl.SSLError is one
            names = " and ".join(map(str, files))
            raise OperatorError(f"cannot use {names} for TLS: {error.strerror or error}") from None
        return context


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        info = os.stat(path)
    except OSError:
        return None
    return info.st_ino, info.st_mtime_ns, info.st_size


def _no_password() -> str:
    """Keeps OpenSSL from asking for the password on the terminal."""
    raise OperatorError("the metrics key is encrypted, which is not supported")

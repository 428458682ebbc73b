"""The metrics address: a small HTTP server on the event loop of the daemon or the hub.

Hand-written because the client library's server has a thread for each client, no time limits, and
completes one client's TLS handshake before it accepts the next client. Limits on clients here:
- One request per connection, of MAX_HEAD bytes, and PATIENCE seconds for everything.
- At most MAX_CLIENTS at a time. A new client replaces the oldest, so a scrape, which takes
  milliseconds, gets through a crowd of idle clients.
- Scrapes within MIN_INTERVAL get the same text, and scrapes during a query of the VMs share its
  answers (exposition.py).
Nothing is compressed, because that would cost more than the scrape itself.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Final, Self

import trio
from prometheus_client.registry import Collector

from vhost_balloon.containment import InternalErrors, KeptOpen
from vhost_balloon.errors import OperatorError
from vhost_balloon.log.lines import logger
from vhost_balloon.metrics.exposition import Exposition, Snapshots
from vhost_balloon.metrics.http import (
    MAX_HEAD,
    METRICS_PATH,
    Answer,
    BadRequest,
    Request,
    RequestReader,
    answer_page,
    plain,
)
from vhost_balloon.metrics.listeners import check_address, open_listeners
from vhost_balloon.metrics.options import MetricsOptions
from vhost_balloon.metrics.tls import Certificates
from vhost_balloon.service.handed_over import METRICS

PATIENCE: Final = 10.0
"""Seconds for one client, Prometheus' own limit."""
MAX_CLIENTS: Final = 64
DRAIN_SECONDS: Final = 1.0
"""How long to read what a client still sends after its answer."""


class _HungUpError(Exception):
    """The client left before its request was complete."""


class MetricsServer:
    """Serves the metrics of the VMs in snapshots() until run() is cancelled.

    collectors: of further metrics, besides those of the VMs, the program and its process.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        listeners: list[trio.SocketListener],
        errors: InternalErrors,
        certificates: Certificates | None = None,
        collectors: Iterable[Collector] = (),
    ) -> None:
        self._exposition = Exposition(snapshots, collectors)
        self._errors = errors
        self._listeners = listeners
        self._certificates = certificates
        self._looking = trio.CapacityLimiter(1)
        """Certificates are checked in a thread, because a file system may hang."""
        self._clients: dict[trio.CancelScope, None] = {}

    @classmethod
    async def open(
        cls,
        options: MetricsOptions,
        snapshots: Snapshots,
        errors: InternalErrors,
        listener: trio.SocketListener | None = None,
        collectors: Iterable[Collector] = (),
    ) -> Self:
        """Use listener, or listen on every address of the host's name.

        The caller closes the server. Raises OperatorError.
        """
        certificates = await trio.to_thread.run_sync(
            _load_certificates, options, abandon_on_cancel=True
        )
        listeners = await _listen(options) if listener is None else [listener]
        server = cls(snapshots, listeners, errors, certificates, collectors)
        logger.info("metrics on %s", ", ".join(server.urls()))
        return server

    def urls(self) -> list[str]:
        """The URLs of its addresses; a link-local address has its zone."""
        scheme = "http" if self._certificates is None else "https"
        names = [
            socket.getnameinfo(
                listener.socket.getsockname(), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
            )
            for listener in self._listeners
        ]
        return [
            f"{scheme}://{MetricsOptions(host, int(port)).address}{METRICS_PATH}"
            for host, port in names
        ]

    def close(self) -> None:
        """Stop listening."""
        for listener in self._listeners:
            listener.socket.close()

    async def run(self) -> None:
        await trio.serve_listeners(
            self._serve_client, [KeptOpen(listener) for listener in self._listeners]
        )

    async def _serve_client(self, stream: trio.SocketStream) -> None:
        scope = trio.move_on_after(PATIENCE)
        self._make_room()
        self._clients[scope] = None
        try:
            # A client that is gone or does not speak TLS is not our failure.
            gone = suppress(trio.BrokenResourceError, _HungUpError)
            with self._errors.contained("metrics-client"), gone, scope:
                async with stream:
                    await self._converse(stream)
        finally:
            self._clients.pop(scope, None)

    def _make_room(self) -> None:
        while len(self._clients) >= MAX_CLIENTS:
            oldest = next(iter(self._clients))
            oldest.cancel()
            del self._clients[oldest]

    async def _converse(self, stream: trio.SocketStream) -> None:
        if self._certificates is None:
            await self._answer_one(stream)
            await _drain(stream)
            return
        context = await trio.to_thread.run_sync(
            self._certificates.context, abandon_on_cancel=True, limiter=self._looking
        )
        encrypted = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        await self._answer_one(encrypted)
        with trio.move_on_after(DRAIN_SECONDS), suppress(trio.BrokenResourceError):
            await encrypted.unwrap()  # fails if the client still sends
        await _drain(stream)

    async def _answer_one(self, stream: trio.abc.Stream) -> None:
        reader = RequestReader()
        try:
            request = await _receive(stream, reader)
            answer = answer_page(request) or await self._metrics(request)
        except BadRequest as error:
            answer = plain(error.status)
        await stream.send_all(answer.head())
        if reader.method != "HEAD":
            await stream.send_all(answer.body)

    async def _metrics(self, request: Request) -> Answer:
        body, content_type = await self._exposition.render(request.accept)
        return Answer(HTTPStatus.OK, body, content_type)


async def check_metrics(options: MetricsOptions) -> None:
    """Raise the OperatorError that MetricsServer.open() would, except for a port in use."""
    _load_certificates(options)
    if options.host != METRICS:  # which means a socket of the service manager
        with _mistakes(options):
            await check_address(options.host, options.port)


def _load_certificates(options: MetricsOptions) -> Certificates | None:
    """Certificates for HTTPS, None for HTTP. Raises OperatorError."""
    if options.certificate is None:
        return None
    return Certificates(options.certificate, options.key, options.client_ca)


async def _listen(options: MetricsOptions) -> list[trio.SocketListener]:
    with _mistakes(options):
        return await open_listeners(options.host, options.port)


@contextmanager
def _mistakes(options: MetricsOptions) -> Iterator[None]:
    """Turn refusals of the system into OperatorErrors."""
    try:
        yield
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OperatorError(f"cannot listen on {options.address}: {reason}") from None


async def _drain(stream: trio.SocketStream) -> None:
    """Read the rest: closing with unread data would destroy an answer that is still in transit."""
    await stream.send_eof()
    with trio.move_on_after(DRAIN_SECONDS):
        while await stream.receive_some(MAX_HEAD):
            pass


async def _receive(stream: trio.abc.Stream, reader: RequestReader) -> Request:
    """Raises BadRequest or _HungUpError."""
    while True:
        data = await stream.receive_some(MAX_HEAD)
        if not data:
            raise _HungUpError
        request = reader.feed(data)
        if request is not None:
            return request

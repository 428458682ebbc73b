"""The metrics address: a small HTTP answerer on the daemon's own event loop.

It is not the client library's server, which has a thread for each client, no time limits, and
with TLS waits for one client's handshake before it accepts the next. What keeps a client from
hurting anyone here:
- One request a connection, of MAX_HEAD bytes, and PATIENCE seconds for everything.
- At most MAX_CLIENTS at a time; the oldest has to go for a new one, so a scrape, which takes
  milliseconds, gets through a crowd that only sits there.
- Scrapes within MIN_INTERVAL of each other get the same text, and those that come while the VMs are
  asked wait for the same answers (metrics_text).
Nothing is compressed: that would cost more than the scrape itself.
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
"""Seconds for one client: Prometheus gives up after as many."""
MAX_CLIENTS: Final = 64
DRAIN_SECONDS: Final = 1.0
"""What a client still sends is read for so long."""


class _HungUpError(Exception):
    """The client went before it had asked."""


class MetricsServer:
    """Answers clients with what snapshots() says, until its run() is cancelled.

    collectors: of what is told beside the VMs, this program and its process.
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
        """Certificates are looked at in a thread, because a file system may hang."""
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
        """Listen on every address of the host's name, if listener does not listen already.

        It is to be closed. Raises OperatorError.
        """
        certificates = await trio.to_thread.run_sync(
            _load_certificates, options, abandon_on_cancel=True
        )
        listeners = await _listen(options) if listener is None else [listener]
        server = cls(snapshots, listeners, errors, certificates, collectors)
        logger.info("metrics on %s", ", ".join(server.urls()))
        return server

    def urls(self) -> list[str]:
        """Where it listens. The address of a link has its zone."""
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
        """Do not listen any more."""
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
            # Whoever is gone, or does not speak TLS, is no failure of ours.
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
            await encrypted.unwrap()  # which breaks if the client still sends
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
    """Raises OperatorError if MetricsServer.open() would, but for a port that is in use."""
    _load_certificates(options)
    if options.host != METRICS:  # the service manager's
        with _mistakes(options):
            await check_address(options.host, options.port)


def _load_certificates(options: MetricsOptions) -> Certificates | None:
    """For HTTPS, None for HTTP. Raises OperatorError."""
    if options.certificate is None:
        return None
    return Certificates(options.certificate, options.key, options.client_ca)


async def _listen(options: MetricsOptions) -> list[trio.SocketListener]:
    with _mistakes(options):
        return await open_listeners(options.host, options.port)


@contextmanager
def _mistakes(options: MetricsOptions) -> Iterator[None]:
    """What the system will not do here is the operator's to mend."""
    try:
        yield
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OperatorError(f"cannot listen on {options.address}: {reason}") from None


async def _drain(stream: trio.SocketStream) -> None:
    """Closing with something unread would destroy the answer on its way."""
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

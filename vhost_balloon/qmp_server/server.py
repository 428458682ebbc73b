"""A thin shell around protocol.qmp and a table of commands.

Clients cannot hurt each other or the program:
- A client's requests are answered one by one, each before the next is read. A client that does not
  read its replies stops only itself and costs no more than the kernel's socket buffers.
- An event waits for a slow client in a slot, where the next event replaces it. So nothing grows,
  and the last value always arrives.
- A client's failure ends that client, and so does our bug in serving it (containment).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final, Generic, TypeAlias

import trio

from protocol import qmp
from protocol.qmp import BadRequest, ErrorClass, Json, Object, Request, version
from protocol.qmp_stream import RequestParser
from vhost_balloon import __version__
from vhost_balloon.containment import InternalErrors
from vhost_balloon.errors import CommandError
from vhost_balloon.log.lines import Shortage
from vhost_balloon.printable import encodable
from vhost_balloon.qmp_server.command import (
    Command,
    Parameter,
    S,
    check_arguments,
    check_type,
    finished,
)

RECEIVE_SIZE: Final = 1 << 10
"""Bytes: one piece of a client's input takes a few milliseconds to parse, whatever is in it."""

CAPABILITIES: Final = "qmp_capabilities"
QUERY_SCHEMA: Final = "query-qmp-schema"
OOB: Final = "oob"
"""QMP's only capability. It is not offered: a client's commands run in order."""

Listener: TypeAlias = trio.abc.Listener[trio.abc.Stream]
Describe: TypeAlias = "Callable[[Mapping[str, Command[S]]], Json]"
"""Makes the answer to query-qmp-schema (schema.py)."""


def version_info() -> Object:
    major, minor, micro = (int(part) for part in __version__.split("."))
    return version(major, minor, micro, "vhost-balloon")


class _HungUpError(Exception):
    """The client is gone."""


class QmpServer(Generic[S]):
    """All clients of one socket."""

    def __init__(
        self,
        subject: S,
        commands: Mapping[str, Command[S]],
        describe: Describe[S],
        errors: InternalErrors,
        most: int | None = None,
    ) -> None:
        """subject: what commands act on. errors: counts failures in "control-client". most:
        clients at a time; others are hung up on. None for no limit."""
        self.subject: Final = subject
        self.commands: Final = commands
        self.describe: Final = describe
        self._errors: Final = errors
        self._most: Final = most
        self._crowd: Final = Shortage()
        self._clients: set[Client[S]] = set()

    async def run(
        self,
        listener: Listener,
        task_status: trio.TaskStatus[list[Listener]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve clients until cancelled."""
        await trio.serve_listeners(self._serve_client, [listener], task_status=task_status)

    def broadcast(self, event: Object) -> None:
        """Send an event to every client; it replaces an event that still waits."""
        message = qmp.encode(event)
        for client in self._clients:
            client.post(message)

    async def _serve_client(self, stream: trio.abc.Stream) -> None:
        """Serve one client from its greeting to its end, and close the stream."""
        if self._most is not None and len(self._clients) >= self._most:
            self._crowd.say(f"more than {self._most} clients of the control socket", None)
            await trio.aclose_forcefully(stream)
            return
        client = Client(stream, self)
        self._clients.add(client)
        try:
            with self._errors.contained("control-client"):
                async with stream:
                    await client.run()
        finally:
            self._clients.remove(client)


class Client(Generic[S]):
    """One connection: capabilities negotiation first, then commands and events."""

    def __init__(self, stream: trio.abc.Stream, server: QmpServer[S]) -> None:
        self._stream = stream
        self._server = server
        self._parser = RequestParser()
        self._negotiated = False
        self._then: Callable[[S], None] | None = None
        self._sending = trio.Lock()
        self._event = b""
        self._event_posted = trio.Event()
        self._commands: Mapping[str, Command[S]] = {
            CAPABILITIES: Command(self._negotiate, (Parameter("enable", "[str]", optional=True),)),
            "query-commands": Command(self._query_commands, returns="[CommandInfo]"),
            QUERY_SCHEMA: Command(self._query_schema, returns="[any]"),
            "query-version": Command(self._query_version, returns="VersionInfo"),
            **server.commands,
        }

    async def run(self) -> None:
        """Serve until the client hangs up, or ends its requests and has received all replies."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_events)
            await self._answer_requests()
            nursery.cancel_scope.cancel()

    def post(self, message: bytes) -> None:
        """Queue an event, which is sent once the client can receive it. Never waits."""
        if self._negotiated:
            self._event = message
            self._event_posted.set()

    async def _answer_requests(self) -> None:
        with suppress(_HungUpError):
            await self._send(qmp.encode(qmp.greeting(version_info())))
            while data := await self._receive():
                await self._answer(self._parser.feed(data))

    async def _answer(self, requests: Iterator[Request | BadRequest]) -> None:
        for request in requests:
            await self._send(qmp.encode(await self._reply(request)))
            then, self._then = self._then, None
            if then is not None:
                then(self._server.subject)

    async def _send_events(self) -> None:
        with suppress(_HungUpError):
            while True:
                await self._event_posted.wait()
                async with self._sending:
                    self._event_posted = trio.Event()
                    with _peer_errors():
                        await self._stream.send_all(self._event)

    async def _send(self, message: bytes) -> None:
        async with self._sending:
            with _peer_errors():
                await self._stream.send_all(message)

    async def _receive(self) -> bytes:
        with _peer_errors():
            return bytes(await self._stream.receive_some(RECEIVE_SIZE))

    async def _reply(self, request: Request | BadRequest) -> Object:
        if isinstance(request, BadRequest):
            return qmp.error(request.text, ErrorClass.GENERIC_ERROR.value, request.reply_id)
        try:
            return qmp.success(await self._execute(request), request.reply_id)
        except CommandError as failure:
            return qmp.error(encodable(str(failure)), failure.error_class, request.reply_id)

    async def _execute(self, request: Request) -> Json:
        command = self._find(request.command)
        arguments = check_arguments(command.parameters, request.arguments)
        result = await finished(command.handler(self._server.subject, arguments))
        self._then = command.then
        return result

    def _find(self, name: str) -> Command[S]:
        not_found = ErrorClass.COMMAND_NOT_FOUND.value
        if not self._negotiated and name != CAPABILITIES:
            text = f"Expecting capabilities negotiation with '{CAPABILITIES}'"
            raise CommandError(text, not_found)
        if name not in self._commands:
            raise CommandError(f"The command {name} has not been found", not_found)
        return self._commands[name]

    def _negotiate(self, subject: S, arguments: dict[str, Any]) -> Json:
        if self._negotiated:
            text = "Capabilities negotiation is already complete, command ignored"
            raise CommandError(text, ErrorClass.COMMAND_NOT_FOUND.value)
        for index, name in enumerate(arguments.get("enable", ())):
            check_type(f"enable[{index}]", "str", name)
            if name != OOB:
                raise CommandError(f"Parameter 'enable' does not accept value '{name}'")
            raise CommandError(f"Capability {OOB} not available")
        # Events follow from now on. None overtakes this reply, for which clients would mistake it:
        # its sending begins before another task runs.
        self._negotiated = True
        return {}

    def _query_commands(self, subject: S, arguments: dict[str, Any]) -> Json:
        return [{"name": name} for name in self._commands]

    def _query_version(self, subject: S, arguments: dict[str, Any]) -> Json:
        return version_info()

    def _query_schema(self, subject: S, arguments: dict[str, Any]) -> Json:
        return self._server.describe(self._commands)


@contextmanager
def _peer_errors() -> Iterator[None]:
    """The only place where a stream's failure becomes the client's end."""
    try:
        yield
    except trio.BrokenResourceError as failure:
        raise _HungUpError from failure

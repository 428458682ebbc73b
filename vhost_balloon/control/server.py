"""The control socket: a QMP server, a thin shell around protocol.qmp and the table of commands.

Clients cannot hurt each other or the daemon:
- A client's requests are answered one by one, each before the next is read. A client that does not
  read its replies stops only itself and costs no more than the kernel's socket buffers.
- An event waits for a slow client in a slot, where the next event replaces it. So nothing grows,
  and the last value always arrives.
- A client's failure ends that client, and so does our bug in serving it (containment).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

import trio

from protocol import qmp
from protocol.qmp import BadRequest, ErrorClass, Json, Object, Request
from protocol.qmp_stream import RequestParser
from vhost_balloon.control.command import Command, Parameter, check_arguments, check_type, finished
from vhost_balloon.control.commands import COMMANDS, version_info
from vhost_balloon.control.events import BalloonEvents
from vhost_balloon.errors import CommandError
from vhost_balloon.printable import encodable
from vhost_balloon.vm.vm import Vm

RECEIVE_SIZE: Final = 1 << 10
"""Bytes: one piece of a client's input takes a few milliseconds to parse, whatever is in it."""

CAPABILITIES: Final = "qmp_capabilities"
QUERY_SCHEMA: Final = "query-qmp-schema"
OOB: Final = "oob"
"""QMP's only capability. It is not offered: a client's commands run in order."""

Listener = trio.abc.Listener[trio.abc.Stream]


async def serve_control(
    listener: Listener,
    vm: Vm,
    *,
    commands: Mapping[str, Command] = COMMANDS,
    task_status: trio.TaskStatus[list[Listener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve clients until cancelled."""
    async with trio.open_nursery() as nursery:
        server = ControlServer(vm, commands)
        events = BalloonEvents(nursery, server.broadcast, vm.internal_errors)
        vm.add_listener(events.changed)
        try:
            await trio.serve_listeners(
                server.serve_client, [listener], handler_nursery=nursery, task_status=task_status
            )
        finally:
            vm.remove_listener(events.changed)


class _HungUpError(Exception):
    """The client is gone."""


class ControlServer:
    """All clients of one control socket."""

    def __init__(self, vm: Vm, commands: Mapping[str, Command]) -> None:
        self.vm = vm
        self.commands = commands
        self._clients: set[Client] = set()

    async def serve_client(self, stream: trio.abc.Stream) -> None:
        """Serve one client from its greeting to its end, and close the stream."""
        client = Client(stream, self)
        self._clients.add(client)
        try:
            with self.vm.internal_errors.contained("control-client"):
                async with stream:
                    await client.run()
        finally:
            self._clients.remove(client)

    def broadcast(self, event: Object) -> None:
        """Send an event to every client; it replaces an event that still waits."""
        message = qmp.encode(event)
        for client in self._clients:
            client.post(message)


class Client:
    """One connection: capabilities negotiation first, then commands and events."""

    def __init__(self, stream: trio.abc.Stream, server: ControlServer) -> None:
        self._stream = stream
        self._server = server
        self._parser = RequestParser()
        self._negotiated = False
        self._then: Callable[[Vm], None] | None = None
        self._sending = trio.Lock()
        self._event = b""
        self._event_posted = trio.Event()
        self._commands: Mapping[str, Command] = {
            CAPABILITIES: Command(self._negotiate, (Parameter("enable", "[str]", optional=True),)),
            "query-commands": Command(self._query_commands, returns="[CommandInfo]"),
            QUERY_SCHEMA: Command(self._query_schema, returns="[any]"),
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
                then(self._server.vm)

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
        result = await finished(command.handler(self._server.vm, arguments))
        self._then = command.then
        return result

    def _find(self, name: str) -> Command:
        not_found = ErrorClass.COMMAND_NOT_FOUND.value
        if not self._negotiated and name != CAPABILITIES:
            text = f"Expecting capabilities negotiation with '{CAPABILITIES}'"
            raise CommandError(text, not_found)
        if name not in self._commands:
            raise CommandError(f"The command {name} has not been found", not_found)
        return self._commands[name]

    def _negotiate(self, vm: Vm, arguments: dict[str, Any]) -> Json:
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

    def _query_commands(self, vm: Vm, arguments: dict[str, Any]) -> Json:
        return [{"name": name} for name in self._commands]

    def _query_schema(self, vm: Vm, arguments: dict[str, Any]) -> Json:
        from vhost_balloon.control.schema import describe  # rarely needed

        return describe(self._commands)


@contextmanager
def _peer_errors() -> Iterator[None]:
    """The only place where a stream's failure becomes the client's end."""
    try:
        yield
    except trio.BrokenResourceError as failure:
        raise _HungUpError from failure

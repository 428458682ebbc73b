"""The front end's socket: sends single messages, well-formed or not, and receives replies."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import trio

from protocol import vhost_user as vu
from protocol import vhost_user_payloads as payloads
from vhost_balloon.simulator.wire import Message, receive_message, send_bytes, send_message


class Refused(Exception):
    """The back end acknowledged a request with a code other than 0."""

    def __init__(self, request: int, code: int) -> None:
        super().__init__(f"request {request} was refused with {code}")
        self.request = request
        self.code = code


class UnexpectedReply(Exception):
    """A reply to another request, or with flags other than 0x5 (QEMU compares both)."""


class Connection:
    """One connection to a back end. An async context manager."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        """Take over a connected stream socket."""
        self.protocol_features = 0  # negotiated
        self._sock = sock
        self._lock = trio.Lock()

    def close(self) -> None:
        """Close the connection without notice, as a killed QEMU does."""
        self._sock.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send arbitrary bytes."""
        await send_bytes(self._sock, data, fds)

    async def send(
        self,
        request: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        need_reply: bool = False,
    ) -> None:
        """Send one message without waiting for a reply."""
        flags = vu.VERSION | (vu.HeaderFlag.NEED_REPLY if need_reply else 0)
        await send_message(self._sock, request, flags, payload, fds)

    async def receive_reply(self) -> Message:
        """Receive the next message from the back end.

        Raises:
            BackEndGone: end of stream.
        """
        return await receive_message(self._sock)

    async def call(
        self,
        request: int,
        payload: bytes = b"",
        fds: Sequence[int] = (),
        *,
        need_reply: bool = False,
    ) -> bytes:
        """Send a request and return the payload of its reply.

        Raises:
            UnexpectedReply: the next message is not its reply.
        """
        async with self._lock:
            await self.send(request, payload, fds, need_reply=need_reply)
            reply = await self.receive_reply()
        if reply.request != request or reply.flags != vu.REPLY_FLAGS:
            raise UnexpectedReply(
                f"request {request} was answered by {reply.request} with flags {reply.flags:#x}"
            )
        return reply.payload

    async def command(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a request that QEMU wants acknowledged. Without REPLY_ACK, do not wait.

        Raises:
            Refused: the acknowledgement is not 0.
        """
        if not self.protocol_features & vu.ProtocolFeature.REPLY_ACK:
            await self.tell(request, payload, fds)
            return
        code = payloads.parse_u64(await self.call(request, payload, fds, need_reply=True))
        if code:
            raise Refused(request, code)

    async def tell(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a request without acknowledgement, but never between a request and its reply."""
        async with self._lock:
            await self.send(request, payload, fds)

    async def cancel(self, scope: trio.CancelScope) -> None:
        """Cancel `scope` while none of its requests waits for a reply, which the next request would
        receive otherwise."""
        async with self._lock:
            scope.cancel()

    async def get_u64(self, request: int) -> int:
        """Send a request without payload and return the number in the reply."""
        return payloads.parse_u64(await self.call(request))

    async def set_u64(self, request: int, value: int) -> None:
        """Send a number, without acknowledgement."""
        await self.tell(request, bytes(payloads.U64.build(value)))


async def connect_socket(path: str | os.PathLike[str]) -> trio.socket.SocketType:
    """Return a stream socket connected to `path`.

    Raises:
        OSError: nothing listens there.
    """
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await sock.connect(os.fspath(path))
    except BaseException:
        sock.close()
        raise
    return sock

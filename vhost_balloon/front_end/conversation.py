"""Answers one front end's messages in order, each before the next one is taken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from vhost_balloon.errors import StreamError
from vhost_balloon.front_end.transport import Transport
from vhost_balloon.session.message import Message
from vhost_balloon.store.journal import Entry, Phase

Answer = Callable[[Message], Awaitable[bytes | None]]
"""Acts on a message and returns the reply's payload, or None if no reply is due. A front end's
mistakes raise nothing."""

Serve = Callable[[Message], Awaitable[None]]


class RequestKeeper(Protocol):
    """Keeps a request, its changes and its reply on record, for the next process."""

    def begin(self) -> None:
        """The request's handling begins."""

    def finish(self, request: int, reply: bytes | None) -> None:
        """The request was handled; reply is None if none is due."""

    def answered(self) -> None:
        """No reply was due, or a reply that the process before owed was sent. Other replies are
        noted as they are sent (store/reply_pipe.py)."""


@dataclass(slots=True)
class Pending:
    """The newest request in the journal, if unanswered. The reply pipe was settled before: the
    entry's phase says whether a reply was sent."""

    entry: Entry
    message: Message


class _Hold:
    """A requested pause in the conversation."""

    def __init__(self) -> None:
        self.reached = trio.Event()
        self.released = trio.Event()


class Conversation:
    """A connection's messages, from the first to the last."""

    def __init__(self, transport: Transport, keeper: RequestKeeper, answer: Answer) -> None:
        self.pending: Pending | None = None
        """The request that the process before left unanswered."""
        self._transport = transport
        self._keeper = keeper
        self._answer = answer
        self._receiving = trio.CancelScope()
        self._answering = False
        self._ending = False
        self._hold: _Hold | None = None
        self._ended = trio.Event()

    async def run(self) -> None:
        """Answer messages until the connection ends.

        Raises StreamError, and ConnectionError if the front end goes while a reply is sent.
        """
        try:
            pending, self.pending = self.pending, None
            if pending is not None:
                await settle(self._transport, pending, self._serve)
                self._keeper.answered()
            while await self._serve_all():
                assert self._hold is not None
                self._hold.reached.set()
                await self._hold.released.wait()
                self._hold = None
            self._transport.shut_down()
        except (StreamError, ConnectionError):
            self._transport.shut_down()
            raise
        finally:
            self._ended.set()
            if self._hold is not None:
                self._hold.reached.set()  # the front end has gone: do not wait for it

    async def _serve_all(self) -> bool:
        """Answer until the connection ends (False) or a hold is requested (True)."""
        with trio.CancelScope() as self._receiving:
            while self._hold is None and not self._ending:
                message = await self._transport.receive()
                if message is None:
                    return False
                self._answering = True
                await self._serve(message)
                self._answering = False
        return not self._ending

    async def _serve(self, message: Message) -> None:
        self._keeper.begin()
        try:
            reply = await self._answer(message)
        finally:
            message.close()
        self._keeper.finish(message.request, reply)
        if reply is None:
            self._keeper.answered()
        else:
            await self._transport.reply(message.request, reply)

    def end(self) -> None:
        """End the connection, after the request at hand but without its reply."""
        self._ending = True
        self._transport.shut_down()
        if not self._answering:
            self._receiving.cancel()

    async def hold(self) -> bool:
        """Stop between two messages until release(), even if this is cancelled.

        Returns False if the connection ends instead.
        """
        if self._ended.is_set():
            return False
        self._hold = _Hold()
        if not self._answering:
            self._receiving.cancel()
        await self._hold.reached.wait()
        return not self._ended.is_set()

    def release(self) -> None:
        """End a hold, or cancel one that is still being waited for."""
        if self._hold is not None:
            self._hold.released.set()


async def settle(transport: Transport, pending: Pending, serve: Serve) -> None:
    """Answer the pending request, unless it is still in the socket."""
    message, entry = pending.message, pending.entry
    if entry.phase >= Phase.DONE:
        message.close()
        if entry.reply is not None:
            await transport.reply(message.request, entry.reply)
    elif entry.phase is Phase.SEEN and transport.begins_with(entry.request):
        message.close()  # it was never taken, and is received again
    else:
        await serve(message)

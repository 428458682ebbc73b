"""Answers a front end whose state was lost: acknowledges every request and does nothing.

QEMU aborts on the next reset of a VM whose back end has gone, so the connection is kept. The
guest's requests stay in its rings, and the next front end on the socket is served normally.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import trio

from vhost_balloon.errors import StreamError
from vhost_balloon.figures.refusal import INERT
from vhost_balloon.figures.statistics import VmState
from vhost_balloon.front_end.conversation import Conversation, Pending
from vhost_balloon.front_end.documents import applied_document, inert_document, partial_document
from vhost_balloon.front_end.keeper import forget
from vhost_balloon.front_end.making_way import SILENT, make_way
from vhost_balloon.front_end.transport import Transport
from vhost_balloon.session.inert_session import InertSession
from vhost_balloon.session.message import Message
from vhost_balloon.store.record import Record
from vhost_balloon.vm.snapshot import VmStatistics
from vhost_balloon.vm.vm import Vm, not_activated


class InertKeeper:
    """Keeps an inert connection on record, as keeper.py does for others.

    name: the socket's name in the store. record: None without a store. Requests are idempotent
    here, so an unanswered one is simply handled again.
    """

    def __init__(
        self,
        record: Record | None,
        name: str,
        transport: Transport,
        session: InertSession,
        reason: str,
        peer_connected: bool,
    ) -> None:
        self.reason: Final = reason
        self._peer_connected = peer_connected
        self._record = record
        self._name = name
        self._transport = transport
        self._session = session
        transport.partial_changed = self._changed

    def attached(self, *, pending: bool) -> None:
        """Put the connection on record. pending: the journal's newest request is unanswered."""
        if self._record is not None:
            self._save(self._record, 0 if pending else self._record.journal.sequence)

    def begin(self) -> None:
        """Nothing to write before the request is handled."""

    def finish(self, request: int, reply: bytes | None) -> None:
        if self._record is not None:
            self._save(self._record, 0)
            self._record.journal.done(reply)

    def answered(self) -> None:
        if self._record is not None:
            self._record.journal.sent()

    def save_all(self, record: Record) -> None:
        """Write everything, for the program that replaces this one."""
        self._save(record, record.journal.sequence)

    def ended(self) -> None:
        if self._record is not None:
            forget(self._record)

    def _changed(self) -> None:
        """Part of a message was taken, after the newest request in the journal."""
        if self._record is not None:
            self._save(self._record, self._record.journal.sequence)

    def _save(self, record: Record, sequence: int) -> None:
        document = inert_document(self.reason, self._name) | {
            "answers": self._session.document(),
            "partial": partial_document(self._transport.partial),
            "peer-connected": self._peer_connected,
            "applied": applied_document(sequence),
            "silent": self._transport.is_new,
        }
        record.save("connection", document)


class InertConnection:
    """One inert front end, until it goes.

    reason: why it is inert, for the operator. peer_connected: see connection.serve_front_end();
    true if it is unknown.
    """

    orders: Final = None

    def __init__(
        self, vm: Vm, transport: Transport, name: str, reason: str, *, peer_connected: bool
    ) -> None:
        self.gone: Final = trio.Event()
        self.session: Final = InertSession(vm.settings.offered)
        self.keeper: Final = InertKeeper(
            vm.saved_to, name, transport, self.session, reason, peer_connected
        )
        self._pid: Final = transport.peer_pid() if peer_connected else None
        self._vm = vm
        self._name = name
        self._transport = transport
        self._conversation = Conversation(transport, self.keeper, self._answer)

    def take_over(self, pending: Pending | None) -> None:
        """pending: the request that serve() answers first."""
        self.keeper.attached(pending=pending is not None)
        self._conversation.pending = pending
        self._vm.log.misbehaved(
            f"the front end is only answered, and its balloon does nothing: {self.keeper.reason}; "
            "the balloon works again after the VM is restarted"
        )

    async def serve(self) -> None:
        """Answer messages until the connection ends."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(make_way, self._transport, self._vm.next_waits, self._make_way)
                await self._converse()
                nursery.cancel_scope.cancel()
        finally:
            self._vm.front_end = None
            self._transport.close()
        self.keeper.ended()
        await self._vm.forget_front_end(self._name)
        self.gone.set()
        self._vm.log.info("front end gone")

    async def _converse(self) -> None:
        try:
            await self._conversation.run()
        except StreamError as error:
            self._vm.log.misbehaved(f"connection ended: {error}")
        except ConnectionError:
            pass  # the front end went while its reply was sent

    def _make_way(self) -> None:
        self._vm.log.misbehaved(SILENT)
        self._conversation.end()

    async def disconnect(self) -> None:
        """End the connection, and wait until everything is released."""
        self._conversation.end()
        await self.gone.wait()

    async def _answer(self, message: Message) -> bytes | None:
        return self.session.answer(message)

    async def hold(self) -> None:
        """Stop between two messages until release(), even if this is cancelled; or be gone."""
        if not await self._conversation.hold():
            await self.gone.wait()

    async def release(self) -> None:
        """End a hold, or cancel one that is still being waited for."""
        self._conversation.release()

    def statistics(self, known: VmStatistics, *, details: bool) -> VmStatistics:
        """Complete the snapshot: there is no device."""
        return replace(
            known,
            state=VmState.INERT,
            front_end_pid=self._pid,
            pause_reasons=(*known.pause_reasons, INERT),
        )

    def pause(self, paused: bool) -> None:
        """Nothing to pause: nothing is discarded."""

    def request_stats(self) -> None:
        """Raises CommandError: there is no device."""
        raise not_activated()

    async def fresh_stats(self) -> None:
        """Raises CommandError: there is no device."""
        raise not_activated()

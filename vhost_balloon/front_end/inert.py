"""A front end whose state was lost: kept connected, every request acknowledged, nothing done.

QEMU aborts at the next reset of a VM whose back end has gone. One whose state cannot be used any
more is therefore answered as a device answers that does nothing; the guest's requests stay where
they are, and the next front end on that socket is served as ever.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import trio

from vhost_balloon.errors import CommandError, StreamError
from vhost_balloon.figures.statistics import VmState
from vhost_balloon.front_end.conversation import Conversation, Pending
from vhost_balloon.front_end.documents import partial_document
from vhost_balloon.front_end.transport import Transport
from vhost_balloon.session.inert_session import InertSession
from vhost_balloon.session.message import Message
from vhost_balloon.store.record import Record
from vhost_balloon.vm.snapshot import VmStatistics
from vhost_balloon.vm.vm import NOT_ACTIVATED, Vm


class InertKeeper:
    """Keeps such a connection on the record, as vhost_balloon.front_end.keeper does others.

    name: what the store knows its socket by. record: None without a store. All that a request
    changes can be changed again: one that was not answered is answered anew.
    """

    def __init__(
        self,
        record: Record | None,
        name: str,
        transport: Transport,
        session: InertSession,
        reason: str,
    ) -> None:
        self.reason: Final = reason
        self._record = record
        self._name = name
        self._transport = transport
        self._session = session
        transport.partial_changed = self._changed

    def attached(self, *, pending: bool) -> None:
        """Put it on record. pending: the journal's newest request is yet to be answered."""
        if self._record is not None:
            self._save(self._record, 0 if pending else self._record.journal.sequence)

    def begin(self) -> None:
        """Nothing is written while a request is handled."""

    def finish(self, request: int, reply: bytes | None) -> None:
        if self._record is not None:
            self._save(self._record, 0)
            self._record.journal.done(reply)

    def answered(self) -> None:
        if self._record is not None:
            self._record.journal.sent()

    def save_all(self, record: Record) -> None:
        """Write everything, for a program that takes this one's place."""
        self._save(record, record.journal.sequence)

    def ended(self) -> None:
        """The front end has gone: nothing of the connection is left."""
        if self._record is not None:
            self._record.save("connection", None)
            self._record.journal.sent()

    def _changed(self) -> None:
        """A part of a message was taken, behind the newest request in the journal."""
        if self._record is not None:
            self._save(self._record, self._record.journal.sequence)

    def _save(self, record: Record, sequence: int) -> None:
        document: dict[str, Any] = {
            "inert": self.reason,
            "socket": self._name,
            "answers": self._session.document(),
            "partial": partial_document(self._transport.partial),
            "applied": [sequence, None],
        }
        record.save("connection", document)


class InertConnection:
    """One such front end, until it goes. reason: why it is not served, for the operator."""

    has_device: Final = False

    def __init__(self, vm: Vm, transport: Transport, name: str, reason: str) -> None:
        self.gone: Final = trio.Event()
        self.session: Final = InertSession(vm.settings.offered)
        self.keeper: Final = InertKeeper(vm.saved_to, name, transport, self.session, reason)
        self._vm = vm
        self._transport = transport
        self._conversation = Conversation(transport, self.keeper, self._answer)

    def resume(self, pending: Pending | None) -> None:
        """pending: what serve() answers first."""
        self.keeper.attached(pending=pending is not None)
        self._transport.is_new = False
        self._conversation.pending = pending
        self._vm.log.misbehaved(
            "the front end is answered and nothing is done for it any more: "
            f"{self.keeper.reason}; the balloon works again once the VM was started anew"
        )

    async def serve(self) -> None:
        """Answer messages until the connection ends."""
        try:
            await self._conversation.run()
        except StreamError as error:
            self._vm.log.misbehaved(f"connection ended: {error}")
        except ConnectionError:
            pass  # the front end went while we answered
        finally:
            self._transport.close()
        self.keeper.ended()
        self.gone.set()
        self._vm.log.info("front end gone")

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
        """A snapshot: known, and that there is no device."""
        return replace(known, state=VmState.INERT, pause_reasons=(VmState.INERT.value,))

    def set_target(self, value: int) -> None:
        """Raises CommandError: there is no device."""
        raise CommandError(NOT_ACTIVATED, "DeviceNotActive")

    def pause(self, paused: bool) -> None:
        """Nothing is discarded anyhow."""

    async def fresh_stats(self) -> None:
        """Raises CommandError: there is no device."""
        raise CommandError(NOT_ACTIVATED, "DeviceNotActive")

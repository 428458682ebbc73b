"""A front end whose state was lost: kept connected, every request acknowledged, nothing done.

QEMU aborts at the next reset of a VM whose back end has gone. One whose state cannot be used any
more is therefore answered as a device answers that does nothing; the guest's requests stay where
they are, and the next front end on that socket is served as ever. The session is pure.
"""

from __future__ import annotations

from typing import Final

import trio

from protocol.vhost_user import MAX_MEMORY_REGIONS, HeaderFlag, Request
from protocol.vhost_user_payloads import (
    CONFIG,
    PayloadError,
    build_u64,
    build_vring_state,
    parse_config,
    parse_u64,
    parse_vring_state,
)
from protocol.virtio_balloon import CONFIG_SIZE, NUM_QUEUES
from vhost_balloon.errors import StateError, StreamError
from vhost_balloon.features import PROTOCOL_FEATURES, TRANSPORT_FEATURES
from vhost_balloon.journal import Phase
from vhost_balloon.message import Message
from vhost_balloon.resume import Pending, settle
from vhost_balloon.session import BASE_REQUESTS, REFUSALS
from vhost_balloon.store import Scope
from vhost_balloon.transport import Transport
from vhost_balloon.vm import Vm

_NUMBERS: Final = {
    Request.GET_PROTOCOL_FEATURES: PROTOCOL_FEATURES,
    Request.GET_QUEUE_NUM: NUM_QUEUES,
    Request.GET_MAX_MEM_SLOTS: MAX_MEMORY_REGIONS,
}


class InertSession:
    """Remembers what the front end may ask for again: status, config space, ring bases."""

    def __init__(self, offered: int) -> None:
        self._features = offered | TRANSPORT_FEATURES
        self._status = 0
        self._config = bytearray(CONFIG_SIZE)
        self._bases: dict[int, int] = {}

    def answer(self, message: Message) -> bytes | None:
        """The reply's payload: success wherever something is to be acknowledged."""
        try:
            reply = self._reply(message)
        except PayloadError:
            reply = None
        if reply is not None:
            return reply
        if message.request in REFUSALS:  # it always has a reply, and this is its "no"
            return REFUSALS[message.request]
        return build_u64(0) if message.flags & HeaderFlag.NEED_REPLY else None

    def _reply(self, message: Message) -> bytes | None:
        match message.request:
            case Request.GET_FEATURES:
                return build_u64(self._features)
            case Request.GET_STATUS:
                return build_u64(self._status)
            case Request.SET_STATUS:
                self._status = parse_u64(message.payload) & 0xFF
            case Request.SET_VRING_BASE:
                index, base = parse_vring_state(message.payload)
                if index < NUM_QUEUES:
                    self._bases[index] = base & 0xFFFF
            case request if request in BASE_REQUESTS:
                index, _ = parse_vring_state(message.payload)
                return build_vring_state(index, self._bases.get(index, 0))
            case Request.GET_CONFIG | Request.SET_CONFIG:
                return self._access_config(message)
            case request if request in _NUMBERS:
                return build_u64(_NUMBERS[Request(request)])
        return None

    def _access_config(self, message: Message) -> bytes | None:
        access = parse_config(message.payload)
        end = access.offset + access.size
        if end > CONFIG_SIZE:
            return b"" if message.request == Request.GET_CONFIG else None
        if message.request == Request.SET_CONFIG:
            self._config[access.offset : end] = access.payload
            return None
        head = CONFIG.pack(access.offset, access.size, access.flags)
        return bytes(head + self._config[access.offset : end])


async def serve_inert(vm: Vm, transport: Transport) -> None:
    """Answer a front end until it goes, first what the journal has of it; vm.inert says why it is
    not served."""
    vm.log.warning(
        f"the front end is answered and nothing is done for it any more: {vm.inert}; the balloon "
        "works again once the VM was started anew"
    )
    session = InertSession(vm.settings.offered)
    journal = None if vm.record is None else vm.record.journal

    async def serve(message: Message) -> None:
        reply = session.answer(message)
        message.close()
        if journal is not None:
            journal.done(reply)
        if reply is not None:
            await transport.reply(message.request, reply)
        if journal is not None:
            journal.sent()

    try:
        entry = None if journal is None else journal.latest()
        if journal is not None and entry is not None and entry.phase is not Phase.SENT:
            await settle(transport, Pending.read(entry, [0, None], Scope(vm.store)), serve)
            journal.sent()
        transport.waiting_since = None
        while (message := await transport.receive()) is not None:
            await serve(message)
            if delay := vm.messages.take(1, trio.current_time()):
                await trio.sleep(delay)
    except (StreamError, StateError) as error:
        vm.log.misbehaved(f"connection ended: {error}")
    except ConnectionError:
        pass
    finally:
        transport.close()
    vm.log.info("front end gone")

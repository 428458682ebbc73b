"""Answers for a front end without a working device (front_end/inert.py). Pure."""

from __future__ import annotations

from typing import Final

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
from protocol.virtio_ring import INDEX_MASK
from vhost_balloon.checked import Document, number
from vhost_balloon.session.message import Message
from vhost_balloon.session.requests import BASE_REQUESTS, REFUSALS
from vhost_balloon.session.session import PROTOCOL_FEATURES, TRANSPORT_FEATURES

_NUMBERS: Final = {
    Request.GET_PROTOCOL_FEATURES: PROTOCOL_FEATURES,
    Request.GET_QUEUE_NUM: NUM_QUEUES,
    Request.GET_MAX_MEM_SLOTS: MAX_MEMORY_REGIONS,
}


class InertSession:
    """Remembers what the front end may read back: status, config space, ring bases."""

    def __init__(self, offered: int) -> None:
        self._features = offered | TRANSPORT_FEATURES
        self._status = 0
        self._config = bytearray(CONFIG_SIZE)
        self._bases: dict[int, int] = {}

    def document(self) -> Document:
        """The state for restore()."""
        return {
            "status": self._status,
            "config": self._config.hex(),
            "bases": list(self._bases.items()),
        }

    def restore(self, document: Document) -> None:
        """Restore all of the document, or raise what checked.reading() turns into a StateError."""
        status = number(document["status"], 0, 0xFF)
        config = bytearray.fromhex(document["config"])
        bases = {
            number(index, 0, NUM_QUEUES - 1): number(base, 0, INDEX_MASK)
            for index, base in document["bases"]
        }
        if len(config) != CONFIG_SIZE:
            raise ValueError(f"a config space of {len(config)} bytes")
        self._status, self._config, self._bases = status, config, bases

    def answer(self, message: Message) -> bytes | None:
        """The reply's payload: success for everything that has to be acknowledged."""
        try:
            reply = self._reply(message)
        except PayloadError:
            reply = None
        if reply is not None:
            return reply
        if message.request in REFUSALS:  # such a request always has a reply
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
                    self._bases[index] = base & INDEX_MASK
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

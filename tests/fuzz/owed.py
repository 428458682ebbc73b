"""The replies a back end owes for the bytes sent to it, from the specification alone."""

from __future__ import annotations

import struct
from typing import Final

from protocol.vhost_user import Request as R
from vhost_balloon.session.session import PROTOCOL_FEATURES

REPLY, NEED_REPLY, REPLY_ACK = 1 << 2, 1 << 3, 1 << 3
MAX_KEPT: Final = 0x10000

REPLY_SIZES: Final[dict[int, set[int]]] = {
    R.GET_FEATURES: {8},
    R.GET_PROTOCOL_FEATURES: {8},
    R.GET_VRING_BASE: {8},
    R.GET_VRING_BASE_SKIP_DRAIN: {8},
    R.GET_QUEUE_NUM: {8},
    R.GET_MAX_MEM_SLOTS: {8},
    R.GET_CONFIG: {0, *range(13, 29)},
    R.GET_STATUS: {8},
    R.GET_INFLIGHT_FD: {20},
    R.GET_SHMEM_CONFIG: {2056},
    R.GET_SHARED_OBJECT: {8},
    R.SET_DEVICE_STATE_FD: {8},
    R.CHECK_DEVICE_STATE: {8},
    R.IOTLB_MSG: {8},
    R.POSTCOPY_END: {8},
}
"""Requests that always have a reply, and its possible payload sizes in bytes."""


class Owed:
    """Follows the stream as it is sent. ended: the stream can no longer be parsed."""

    def __init__(self) -> None:
        self.ended = False
        self._open = b""
        self._fds = 0
        self._acks = False
        self._replies: list[int] = []

    @property
    def between_messages(self) -> bool:
        return not self.ended and not self._open

    def sent(self, data: bytes, fds: int) -> None:
        """Take a piece; its descriptors belong to the message that contains its first byte."""
        self._open += data
        self._fds += fds
        while len(self._open) >= 12 and not self.ended:
            request, flags, size = struct.unpack_from("<III", self._open)
            if flags & 0x3 != 1 or flags & ~0xF:
                self.ended = True
            elif len(self._open) < 12 + size:
                return
            else:
                self._message(request, flags, self._open[12 : 12 + size])
                self._open, self._fds = self._open[12 + size :], 0

    def _message(self, request: int, flags: int, payload: bytes) -> None:
        valid = not flags & REPLY and not self._fds and len(payload) == 8
        if request == R.SET_PROTOCOL_FEATURES and valid:
            features = int.from_bytes(payload, "little")
            if not features & ~PROTOCOL_FEATURES:
                self._acks = bool(features & REPLY_ACK)
        if request in REPLY_SIZES or (flags & NEED_REPLY and self._acks):
            self._replies.append(request)

    def check(self, received: bytes) -> None:
        """Raise AssertionError unless received is exactly what is owed."""
        for expected in self._replies:
            assert len(received) >= 12, f"no reply to request {expected}"
            request, flags, size = struct.unpack_from("<III", received)
            payload, received = received[12 : 12 + size], received[12 + size :]
            assert (request, flags) == (expected, 0x5), "not the reply that is due"
            assert len(payload) == size
            assert size in REPLY_SIZES.get(request, {8}), f"{size} bytes for request {request}"
            if request not in REPLY_SIZES:
                assert payload in (bytes(8), b"\1" + bytes(7)), (
                    "the acknowledgement is neither 0 nor 1"
                )
        assert not received, "more bytes than owed"

"""Handles and refuses vhost-user requests: the table of handlers, replies and acks. Pure.

handle() is a generator: it yields effects (effects.py), receives their results, and returns the
reply's payload, or None for no reply. A handler (requests_*.py) returns the payload or None
directly, or is such a generator itself. Every request passes the same four steps: gate (is its
feature negotiated), size, validation, action. State changes only after the effects that it
depends on have succeeded. FrontEndError, raised by a handler or thrown into it, leads to a refusal:
a non-zero ack if one was requested, the defined failure reply of requests that always have a
reply, nothing otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from protocol.vhost_user import DEVICE_STATE_NO_FD, HeaderFlag, ProtocolFeature, Request
from protocol.vhost_user_payloads import (
    NO_SHMEM,
    Inflight,
    PayloadError,
    build_u64,
    build_vring_state,
)
from vhost_balloon.errors import FrontEndError
from vhost_balloon.session import requests_device, requests_memory, requests_rings
from vhost_balloon.session.effects import Steps
from vhost_balloon.session.message import WITH_FDS, Message
from vhost_balloon.session.session import Session

REFUSALS: Final[dict[int, bytes]] = {
    Request.GET_FEATURES: build_u64(0),
    Request.GET_PROTOCOL_FEATURES: build_u64(0),
    Request.GET_CONFIG: b"",
    Request.GET_INFLIGHT_FD: bytes(Inflight.sizeof()),
    Request.GET_SHMEM_CONFIG: NO_SHMEM,
    Request.SET_DEVICE_STATE_FD: build_u64(DEVICE_STATE_NO_FD | 1),
    Request.GET_QUEUE_NUM: build_u64(0),
    Request.GET_MAX_MEM_SLOTS: build_u64(0),
    Request.GET_STATUS: build_u64(0),
    Request.CHECK_DEVICE_STATE: build_u64(1),
    Request.GET_SHARED_OBJECT: build_u64(1),
    Request.IOTLB_MSG: build_u64(1),
    Request.POSTCOPY_END: build_u64(1),
}
"""Failure replies of the requests that have a reply even without need_reply."""

# Plain ints: an IntFlag's operators take a microsecond each, and three are on the guest's hot path.
_REPLY: Final = int(HeaderFlag.REPLY)
_NEED_REPLY: Final = int(HeaderFlag.NEED_REPLY)
_REPLY_ACK: Final = int(ProtocolFeature.REPLY_ACK)

BASE_REQUESTS: Final = (Request.GET_VRING_BASE, Request.GET_VRING_BASE_SKIP_DRAIN)


def handle(session: Session, message: Message) -> Steps:
    """Handle one message; return the reply's payload, or None for no reply.

    Raises FrontEndError if the request is refused; refuse() has the reply then.
    """
    if message.oversized:
        raise FrontEndError("payload is too long")
    if message.flags & _REPLY:
        raise FrontEndError("reply flag on a request")
    entry = _HANDLERS.get(message.request)
    if entry is None:
        raise FrontEndError("not supported")
    handler, gate = entry
    if gate & ~session.protocol_features:
        raise FrontEndError(f"{ProtocolFeature(gate).name} is not negotiated")
    if message.fds_lost:
        raise FrontEndError("descriptors could not all be received, or do not belong to it")
    if message.fds and message.request not in WITH_FDS:
        message.expect_fds(0)
    try:
        outcome = handler(session, message)
        if outcome is None or isinstance(outcome, bytes):
            reply = outcome
        else:
            reply = yield from outcome
    except PayloadError as error:
        raise FrontEndError(str(error)) from None
    return _ack(session, message, 0) if reply is None else reply


def refuse(session: Session, message: Message) -> bytes | None:
    """The reply to a refused request, or None if none is due."""
    if message.request in BASE_REQUESTS:
        index = int.from_bytes(message.payload[:4], "little")
        return build_vring_state(index, 0)
    if message.request in REFUSALS:
        return REFUSALS[message.request]
    return _ack(session, message, 1)


def _ack(session: Session, message: Message, value: int) -> bytes | None:
    if message.flags & _NEED_REPLY and session.protocol_features & _REPLY_ACK:
        return build_u64(value)
    return None


_Handler = Callable[[Session, Message], Steps | bytes | None]
_F = ProtocolFeature

_HANDLERS: Final[dict[int, tuple[_Handler, int]]] = {
    Request.GET_FEATURES: (requests_device.get_features, 0),
    Request.SET_FEATURES: (requests_device.set_features, 0),
    Request.SET_OWNER: (requests_device.set_owner, 0),
    Request.RESET_OWNER: (requests_device.reset_owner, 0),
    Request.SET_MEM_TABLE: (requests_memory.set_mem_table, 0),
    Request.SET_VRING_NUM: (requests_rings.set_vring_num, 0),
    Request.SET_VRING_ADDR: (requests_rings.set_vring_addr, 0),
    Request.SET_VRING_BASE: (requests_rings.set_vring_base, 0),
    Request.GET_VRING_BASE: (requests_rings.get_vring_base, 0),
    Request.SET_VRING_KICK: (requests_rings.set_vring_kick, 0),
    Request.SET_VRING_CALL: (requests_rings.set_vring_call, 0),
    Request.SET_VRING_ERR: (requests_rings.set_vring_err, 0),
    Request.GET_PROTOCOL_FEATURES: (requests_device.get_protocol_features, 0),
    Request.SET_PROTOCOL_FEATURES: (requests_device.set_protocol_features, 0),
    Request.GET_QUEUE_NUM: (requests_device.get_queue_num, int(_F.MQ)),
    Request.SET_VRING_ENABLE: (requests_rings.set_vring_enable, 0),
    Request.SET_BACKEND_REQ_FD: (requests_device.set_backend_req_fd, int(_F.BACKEND_REQ)),
    Request.GET_CONFIG: (requests_device.get_config, int(_F.CONFIG)),
    Request.SET_CONFIG: (requests_device.set_config, int(_F.CONFIG)),
    Request.RESET_DEVICE: (requests_device.reset_device, int(_F.RESET_DEVICE)),
    Request.GET_MAX_MEM_SLOTS: (requests_device.get_max_mem_slots, int(_F.CONFIGURE_MEM_SLOTS)),
    Request.ADD_MEM_REG: (requests_memory.add_mem_reg, int(_F.CONFIGURE_MEM_SLOTS)),
    Request.REM_MEM_REG: (requests_memory.rem_mem_reg, int(_F.CONFIGURE_MEM_SLOTS)),
    Request.SET_STATUS: (requests_device.set_status, int(_F.STATUS)),
    Request.GET_STATUS: (requests_device.get_status, int(_F.STATUS)),
}
"""The handler of each request, and the protocol feature that it requires."""

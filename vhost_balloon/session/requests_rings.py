"""Handles requests that set up, start, stop and enable rings. Pure.

requests.py says how handlers work, session.py which rules rings follow.
"""

from __future__ import annotations

from protocol.vhost_user_payloads import (
    build_vring_state,
    parse_vring_addr,
    parse_vring_fd,
    parse_vring_state,
)
from protocol.virtio_ring import (
    AVAILABLE_ALIGNMENT,
    DESCRIPTOR_ALIGNMENT,
    INDEX_MASK,
    MAX_QUEUE_SIZE,
    USED_ALIGNMENT,
)
from vhost_balloon.errors import FrontEndError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.session.effects import RingSetup, SetCall, SetErr, SetKick, StartRing, Steps
from vhost_balloon.session.message import Message
from vhost_balloon.session.session import Ring, Session


def _check_unchanged(ring: Ring, same: bool) -> None:
    if ring.started and not same:
        raise FrontEndError("ring is started")


def _optional_fd(session: Session, message: Message) -> tuple[int, OwnedFd | None]:
    index, has_fd = parse_vring_fd(message.payload)
    session.ring(index)
    fds = message.expect_fds(int(has_fd))
    return index, fds[0] if fds else None


def set_vring_num(session: Session, message: Message) -> None:
    index, size = parse_vring_state(message.payload)
    ring = session.ring(index)
    if not 0 < size <= MAX_QUEUE_SIZE or size & (size - 1):
        raise FrontEndError(f"queue size {size} is not a power of two up to {MAX_QUEUE_SIZE}")
    _check_unchanged(ring, ring.size == size)
    ring.size = size


def set_vring_addr(session: Session, message: Message) -> None:
    address = parse_vring_addr(message.payload)
    ring = session.ring(address.index)
    if address.flags:
        raise FrontEndError("ring logging is not supported")
    for name, value, alignment in (
        ("descriptor", address.descriptor, DESCRIPTOR_ALIGNMENT),
        ("available", address.available, AVAILABLE_ALIGNMENT),
        ("used", address.used, USED_ALIGNMENT),
    ):
        if value % alignment:
            raise FrontEndError(f"{name} address {value:#x} is not aligned to {alignment}")
    _check_unchanged(ring, ring.address == address)
    ring.address = address


def set_vring_base(session: Session, message: Message) -> None:
    index, base = parse_vring_state(message.payload)
    ring = session.ring(index)
    if base > INDEX_MASK:
        raise FrontEndError(f"base {base} does not fit 16 bits")
    _check_unchanged(ring, ring.base == base)
    ring.base = base


def get_vring_base(session: Session, message: Message) -> Steps:
    index, _ = parse_vring_state(message.payload)
    ring = session.ring(index)
    if ring.started:
        yield from session.stop(index)
        session.returned_bases[index] = ring.base
    return build_vring_state(index, ring.base)


def set_vring_kick(session: Session, message: Message) -> Steps:
    index, has_fd = parse_vring_fd(message.payload)
    ring = session.ring(index)
    if not has_fd:
        raise FrontEndError("a ring without a kick descriptor (polling) is not supported")
    if not ring.size or ring.address is None:
        raise FrontEndError(f"ring {index} has no size or no address yet")
    (kick,) = message.expect_fds(1)
    if ring.started:
        yield SetKick(index, kick)
    else:
        yield StartRing(index, kick, RingSetup(ring.size, ring.address, ring.base))
    message.release_fds()
    ring.started = True
    yield from session.rings_enabled()
    return None


def set_vring_call(session: Session, message: Message) -> Steps:
    index, fd = _optional_fd(session, message)
    yield SetCall(index, fd)
    message.release_fds()
    return None


def set_vring_err(session: Session, message: Message) -> Steps:
    index, fd = _optional_fd(session, message)
    yield SetErr(index, fd)
    message.release_fds()
    return None


def set_vring_enable(session: Session, message: Message) -> Steps:
    index, enabled = parse_vring_state(message.payload)
    ring = session.ring(index)
    if enabled > 1:
        raise FrontEndError(f"enable is {enabled}, not 0 or 1")
    ring.enabled = bool(enabled)
    yield from session.rings_enabled()
    return None

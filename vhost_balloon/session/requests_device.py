"""Handles requests about features, the config space and the device as a whole. Pure.

requests.py says how handlers work.
"""

from __future__ import annotations

from protocol.vhost_user import MAX_MEMORY_REGIONS, ConfigFlag
from protocol.vhost_user_payloads import CONFIG, build_u64, parse_config, parse_empty, parse_u64
from protocol.virtio_balloon import NUM_PAGES_SIZE, NUM_QUEUES
from vhost_balloon.errors import FrontEndError
from vhost_balloon.session.effects import (
    ActualChanged,
    RingsChanged,
    SetBackendChannel,
    Steps,
    TargetChanged,
)
from vhost_balloon.session.message import Message
from vhost_balloon.session.session import PROTOCOL_FEATURES, Session


def get_features(session: Session, message: Message) -> bytes:
    parse_empty(message.payload)
    return build_u64(session.offered)


def set_features(session: Session, message: Message) -> Steps:
    features = parse_u64(message.payload)
    if features & ~session.offered:
        raise FrontEndError(f"features {features & ~session.offered:#x} were not offered")
    session.features = session.balloon.features = features
    yield RingsChanged()
    return None


def get_protocol_features(session: Session, message: Message) -> bytes:
    parse_empty(message.payload)
    return build_u64(PROTOCOL_FEATURES)


def set_protocol_features(session: Session, message: Message) -> None:
    features = parse_u64(message.payload)
    if features & ~PROTOCOL_FEATURES:
        raise FrontEndError(
            f"protocol features {features & ~PROTOCOL_FEATURES:#x} were not offered"
        )
    session.protocol_features = features


def set_owner(session: Session, message: Message) -> Steps:
    """Begin a device: the connection's first, or one that takes the place of another."""
    parse_empty(message.payload)
    yield from session.begin_device()
    return None


def reset_owner(session: Session, message: Message) -> Steps:
    """Deprecated; the spec recommends ignoring it or disabling all rings."""
    parse_empty(message.payload)
    for ring in session.rings:
        ring.enabled = False
    yield RingsChanged()
    return None


def get_queue_num(session: Session, message: Message) -> bytes:
    parse_empty(message.payload)
    return build_u64(NUM_QUEUES)


def get_max_mem_slots(session: Session, message: Message) -> bytes:
    parse_empty(message.payload)
    return build_u64(MAX_MEMORY_REGIONS)


def set_backend_req_fd(session: Session, message: Message) -> Steps:
    parse_empty(message.payload)
    yield SetBackendChannel(*message.expect_fds(1))
    message.release_fds()
    return None


def get_config(session: Session, message: Message) -> bytes:
    access = parse_config(message.payload)
    content = session.balloon.read_config(access.offset, access.size)
    if access.offset < NUM_PAGES_SIZE:  # QEMU reads everything; others read single fields
        session.config_unread = False
    return CONFIG.pack(access.offset, access.size, access.flags) + content


def set_config(session: Session, message: Message) -> Steps:
    access = parse_config(message.payload)
    if access.flags not in (ConfigFlag.WRITABLE, ConfigFlag.MIGRATION):
        raise FrontEndError(f"config flags {access.flags} are unknown")
    migration, before = access.flags == ConfigFlag.MIGRATION, session.balloon.target_pages
    if session.balloon.write_config(access.offset, access.payload, migration=migration):
        yield ActualChanged()
    if session.balloon.target_pages != before:
        yield TargetChanged()
    return None


def reset_device(session: Session, message: Message) -> Steps:
    parse_empty(message.payload)
    yield from session.reset()
    return None


def get_status(session: Session, message: Message) -> bytes:
    parse_empty(message.payload)
    return build_u64(session.status)


def set_status(session: Session, message: Message) -> Steps:
    status = parse_u64(message.payload)
    if status > 0xFF:
        raise FrontEndError(f"status {status:#x} does not fit 8 bits")
    session.status = status
    if status == 0:
        yield from session.reset()
    return None

"""vhost-user: request numbers, feature bits, limits and the message header.

Source: QEMU docs/interop/vhost-user.rst. The protocol uses the host's byte order; this package
supports little-endian hosts only (see vhost_balloon.__main__). vhost_user_payloads.py has the
payloads.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from construct import Int32ul, Struct

VERSION: Final = 0x1
VERSION_MASK: Final = 0x3


class HeaderFlag(enum.IntFlag):
    """Bits of the header's flags word above the two version bits."""

    REPLY = 1 << 2
    NEED_REPLY = 1 << 3


REPLY_FLAGS: Final = VERSION | HeaderFlag.REPLY
"""The flags of every reply. QEMU compares the whole word, so nothing may be added."""

MAX_MEMORY_REGIONS: Final = 509
"""Slots offered to the front end: KVM's x86 default of 512, less QEMU's own three."""

MAX_TABLE_REGIONS: Final = 8
"""Regions that one SET_MEM_TABLE can name (spec: "region0 ... region7")."""

MAX_FDS: Final = 253
"""The kernel's SCM_MAX_FD: no message can carry more descriptors."""

MAX_PAYLOAD_SIZE: Final = 0x10000
"""Longest payload that is kept; a longer one is skipped, and its request refused.

The longest payload in the specification has 2056 bytes (GET_SHMEM_CONFIG's reply)."""

NO_FD: Final = 1 << 8
"""Bit 8 of a kick, call or err payload: no descriptor comes with the message."""

HEADER_SIZE: Final = 12
Header = Struct("request" / Int32ul, "flags" / Int32ul, "size" / Int32ul)
HEADER: Final = struct.Struct("<III")
"""Fast form of Header: request, flags, payload size in bytes."""


class Request(enum.IntEnum):
    """Front-end message types (spec: "Front-end message types"), without the prefix."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44
    GET_VRING_BASE_SKIP_DRAIN = 45


class BackendRequest(enum.IntEnum):
    """Back-end message types (spec: "Back-end message types"), without the prefix."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2
    VRING_HOST_NOTIFIER_MSG = 3
    VRING_CALL = 4
    VRING_ERR = 5
    SHARED_OBJECT_ADD = 6
    SHARED_OBJECT_REMOVE = 7
    SHARED_OBJECT_LOOKUP = 8
    SHMEM_MAP = 9
    SHMEM_UNMAP = 10


class ProtocolFeature(enum.IntFlag):
    """VHOST_USER_PROTOCOL_F_* as masks."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    XEN_MMAP = 1 << 17
    SHARED_OBJECT = 1 << 18
    DEVICE_STATE = 1 << 19
    GET_VRING_BASE_INFLIGHT = 1 << 20
    GPA_ADDRESSES = 1 << 21
    SHMEM = 1 << 22
    GET_VRING_BASE_SKIP_DRAIN = 1 << 23


class VhostFeature(enum.IntFlag):
    """Feature bits that vhost adds to the virtio ones, as masks."""

    LOG_ALL = 1 << 26
    PROTOCOL_FEATURES = 1 << 30


class ConfigFlag(enum.IntEnum):
    """The flags word of GET_CONFIG and SET_CONFIG."""

    WRITABLE = 0
    MIGRATION = 1


DEVICE_STATE_NO_FD: Final = 1 << 8
"""Bit 8 of SET_DEVICE_STATE_FD's reply: the back end returns no descriptor of its own."""

"""Split virtqueues: sizes, flags and layouts of the three parts of a ring.

Source: virtio specification, "Split Virtqueues". The construct layouts are the reference; the hot
path uses the struct forms, and a property test compares the two.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from construct import Array, Int16ul, Int32ul, Int64ul, Struct, this

MAX_QUEUE_SIZE: Final = 32768
INDEX_MASK: Final = 0xFFFF
"""Ring indexes are free-running 16-bit counters."""

DESCRIPTOR_ALIGNMENT: Final = 16
AVAILABLE_ALIGNMENT: Final = 2
USED_ALIGNMENT: Final = 4

DESCRIPTOR_SIZE: Final = 16
USED_ELEMENT_SIZE: Final = 8


class DescriptorFlag(enum.IntFlag):
    """VIRTQ_DESC_F_*."""

    NEXT = 1
    WRITE = 2
    INDIRECT = 4


class AvailableFlag(enum.IntFlag):
    """VIRTQ_AVAIL_F_*: advice only, and this device always notifies."""

    NO_INTERRUPT = 1


class UsedFlag(enum.IntFlag):
    """VIRTQ_USED_F_*: never set here, so the driver always notifies."""

    NO_NOTIFY = 1


class RingFeature(enum.IntFlag):
    """Feature bits reserved for rings and the device in general, as masks."""

    NOTIFY_ON_EMPTY = 1 << 24
    ANY_LAYOUT = 1 << 27
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35


class DeviceStatus(enum.IntFlag):
    """The device status field (virtio specification, "Device Status Field")."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    DEVICE_NEEDS_RESET = 64
    FAILED = 128


Descriptor = Struct("address" / Int64ul, "length" / Int32ul, "flags" / Int16ul, "next" / Int16ul)
AvailableRing = Struct(
    "flags" / Int16ul,
    "index" / Int16ul,
    "ring" / Array(this._.queue_size, Int16ul),
    "used_event" / Int16ul,
)
UsedElement = Struct("id" / Int32ul, "length" / Int32ul)
UsedRing = Struct(
    "flags" / Int16ul,
    "index" / Int16ul,
    "ring" / Array(this._.queue_size, UsedElement),
    "avail_event" / Int16ul,
)

DESCRIPTOR: Final = struct.Struct("<QIHH")
"""Fast form of Descriptor: address, length in bytes, flags, next."""
USED_ELEMENT: Final = struct.Struct("<II")
"""Fast form of UsedElement: head of the chain, bytes written."""


def descriptor_table_size(queue_size: int) -> int:
    """Bytes of a descriptor table."""
    return DESCRIPTOR_SIZE * queue_size


def available_ring_size(queue_size: int) -> int:
    """Bytes of an available ring, without used_event, which exists only with EVENT_IDX."""
    return 4 + 2 * queue_size


def used_ring_size(queue_size: int) -> int:
    """Bytes of a used ring, without avail_event, which exists only with EVENT_IDX."""
    return 4 + USED_ELEMENT_SIZE * queue_size

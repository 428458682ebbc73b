"""vhost-user payloads: construct layouts, and typed values read from and written to them.

Source: QEMU docs/interop/vhost-user.rst, section "Payload". The construct layouts are the
reference; CONFIG is the fast form of the one payload on the guest's hot path.

Every parse_* function takes the whole payload as bytes and raises PayloadError unless it has
exactly the size that the layout, with the counts inside it, requires.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from construct import (
    Array,
    Bytes,
    Construct,
    ConstructError,
    Int16ul,
    Int32ul,
    Int64ul,
    Struct,
    this,
)

from protocol.vhost_user import MAX_TABLE_REGIONS, NO_FD

U64 = Int64ul
VringState = Struct("index" / Int32ul, "num" / Int32ul)
VringAddr = Struct(
    "index" / Int32ul,
    "flags" / Int32ul,
    "descriptor" / Int64ul,
    "used" / Int64ul,
    "available" / Int64ul,
    "log" / Int64ul,
)
"""struct vhost_vring_addr; the spec's table also draws a "size" word, which the C structure,
and so every implementation, does not have."""
MemoryRegion = Struct(
    "guest_address" / Int64ul,
    "size" / Int64ul,
    "user_address" / Int64ul,
    "mmap_offset" / Int64ul,
)
MemoryTable = Struct(
    "num_regions" / Int32ul,
    "padding" / Int32ul,
    "regions" / Array(this.num_regions, MemoryRegion),
)
SingleMemoryRegion = Struct("padding" / Int64ul, "region" / MemoryRegion)
Config = Struct(
    "offset" / Int32ul,
    "size" / Int32ul,
    "flags" / Int32ul,
    "payload" / Bytes(this.size),
)
Inflight = Struct(
    "mmap_size" / Int64ul,
    "mmap_offset" / Int64ul,
    "num_queues" / Int16ul,
    "queue_size" / Int16ul,
)
ShmemConfig = Struct(
    "num_regions" / Int32ul,
    "padding" / Int32ul,
    "sizes" / Array(256, Int64ul),
)

CONFIG: Final = struct.Struct("<III")
"""Fast form of Config without its payload: offset, size in bytes, flags."""

U64_FAST: Final = struct.Struct("<Q")
"""Fast form of U64: every acknowledgement is one."""

NO_SHMEM: Final = bytes(ShmemConfig.sizeof())
"""GET_SHMEM_CONFIG's reply for a device without shared memory regions."""


class PayloadError(ValueError):
    """A payload whose size does not match its layout."""


@dataclass(frozen=True, slots=True)
class Region:
    """One memory region: addresses and size in bytes, mmap_offset in bytes into its file."""

    guest_address: int
    size: int
    user_address: int
    mmap_offset: int


@dataclass(frozen=True, slots=True)
class VringAddress:
    """Where a ring's three parts lie, as front-end user addresses."""

    index: int
    flags: int
    descriptor: int
    used: int
    available: int
    log: int


class ConfigAccess(NamedTuple):
    """A config-space access: offset and size in bytes; payload has the bytes to write."""

    offset: int
    size: int
    flags: int
    payload: bytes


def _parse(layout: Construct[Any, Any], payload: bytes) -> Any:
    """Parse exactly the whole payload."""
    try:
        value = layout.parse(payload)
    except ConstructError:
        raise PayloadError(f"{len(payload)} bytes of payload are too few") from None
    expected = len(layout.build(value))
    if expected != len(payload):
        raise PayloadError(f"payload has {len(payload)} bytes, not {expected}")
    return value


def parse_empty(payload: bytes) -> None:
    if payload:
        raise PayloadError(f"payload has {len(payload)} bytes, not 0")


def parse_u64(payload: bytes) -> int:
    return int(_parse(U64, payload))


def build_u64(value: int) -> bytes:
    return U64_FAST.pack(value)


def parse_vring_state(payload: bytes) -> tuple[int, int]:
    """Return (ring index, number)."""
    state = _parse(VringState, payload)
    return state.index, state.num


def build_vring_state(index: int, num: int) -> bytes:
    return bytes(VringState.build({"index": index, "num": num}))


def parse_vring_fd(payload: bytes) -> tuple[int, bool]:
    """Return (ring index, whether a descriptor must come with it). Bits 9-63 must be 0."""
    value = parse_u64(payload)
    if value & ~(NO_FD | 0xFF):
        raise PayloadError(f"reserved bits are set in {value:#x}")
    return value & 0xFF, not value & NO_FD


def parse_vring_addr(payload: bytes) -> VringAddress:
    a = _parse(VringAddr, payload)
    return VringAddress(a.index, a.flags, a.descriptor, a.used, a.available, a.log)


def _region(value: Any) -> Region:
    return Region(value.guest_address, value.size, value.user_address, value.mmap_offset)


def parse_memory_table(payload: bytes) -> list[Region]:
    """Return 0 to 8 regions. A table padded to eight is accepted, too."""
    if len(payload) < 8:
        raise PayloadError(f"{len(payload)} bytes of payload are too few")
    count = int.from_bytes(payload[:4], "little")
    needed = 8 + count * MemoryRegion.sizeof()
    if count > MAX_TABLE_REGIONS:
        raise PayloadError(f"{count} regions are more than {MAX_TABLE_REGIONS}")
    if len(payload) not in (needed, 8 + MAX_TABLE_REGIONS * MemoryRegion.sizeof()):
        raise PayloadError(f"payload has {len(payload)} bytes, not {needed}")
    return [_region(value) for value in _parse(MemoryTable, payload[:needed]).regions]


def parse_single_region(payload: bytes) -> Region:
    return _region(_parse(SingleMemoryRegion, payload).region)


def parse_config(payload: bytes) -> ConfigAccess:
    """Parse GET_CONFIG or SET_CONFIG with the fast form; both carry `size` payload bytes."""
    if len(payload) < CONFIG.size:
        raise PayloadError(f"{len(payload)} bytes of payload are too few")
    offset, size, flags = CONFIG.unpack_from(payload)
    if len(payload) != CONFIG.size + size:
        raise PayloadError(f"payload has {len(payload)} bytes, not {CONFIG.size + size}")
    return ConfigAccess(offset, size, flags, payload[CONFIG.size :])

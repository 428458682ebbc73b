"""Valid requests with numbers from a Source, and sequences that reach far into a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from protocol.vhost_user import HEADER
from protocol.vhost_user import Request as R
from tests.fuzz.descriptors import KINDS, MEMORY_SIZE
from tests.fuzz.rings_by_hand import AVAILABLE, DESCRIPTORS, RING_SIZE, USED, ring_offset
from tests.fuzz.source import Source
from tests.support.hostile.bad_requests import U64, addr, config, slot, state, table
from tests.support.hostile.bad_requests import region as region_of
from vhost_balloon.session.session import PROTOCOL_FEATURES, TRANSPORT_FEATURES

USER: Final = 0x7F00_0000_0000
EVERY_FEATURE: Final = 0x3F | TRANSPORT_FEATURES
NEED_REPLY: Final = 9
MEMORY, EVENTFD, SOCKET = (KINDS.index(kind) for kind in ("memory", "eventfd", "socket"))


class Sent(NamedTuple):
    """A request and the kinds of its descriptors, as positions in KINDS."""

    request: int
    payload: bytes = b""
    kinds: tuple[int, ...] = ()
    flags: int = NEED_REPLY

    def message(self) -> bytes:
        return HEADER.pack(self.request, self.flags, len(self.payload)) + self.payload


def plain(request: int) -> Sent:
    return Sent(request, flags=1)


Template = Callable[[int, Source], Sent]


def _ring_address(index: int, offset: int = 0) -> bytes:
    ring = USER + ring_offset(index) + offset
    return addr(index, ring + DESCRIPTORS, ring + AVAILABLE, ring + USED)


def _memory(slot_number: int) -> tuple[int, int, int, int]:
    """Guest address, size, user address and file offset; all slots map the same file."""
    return slot_number << 32, MEMORY_SIZE, USER + (slot_number << 32), 0


def _some_memory(source: Source) -> tuple[int, int, int, int]:
    guest, offset, size = (source.number(2) << 4 for _ in range(3))
    return guest, size, USER + guest, offset


TEMPLATES: Final[tuple[Template, ...]] = (
    lambda i, s: Sent(R.GET_FEATURES),
    lambda i, s: Sent(R.SET_FEATURES, U64(EVERY_FEATURE & ~s.number())),
    lambda i, s: Sent(R.SET_FEATURES, U64(s.number(5))),
    lambda i, s: Sent(R.SET_OWNER),
    lambda i, s: Sent(R.RESET_OWNER),
    lambda i, s: Sent(R.GET_PROTOCOL_FEATURES),
    lambda i, s: Sent(R.SET_PROTOCOL_FEATURES, U64(PROTOCOL_FEATURES & ~s.number(2))),
    lambda i, s: Sent(R.SET_MEM_TABLE, table(region_of(*_memory(0))), (MEMORY,)),
    lambda i, s: Sent(
        R.SET_MEM_TABLE,
        table(region_of(*_memory(0)), region_of(*_memory(1 + i))),
        (MEMORY, s.number()),
    ),
    lambda i, s: Sent(R.SET_MEM_TABLE, table()),
    lambda i, s: Sent(R.SET_MEM_TABLE, table(region_of(*_some_memory(s))), (MEMORY,)),
    lambda i, s: Sent(R.ADD_MEM_REG, slot(*_memory(i)), (s.number(),)),
    lambda i, s: Sent(R.ADD_MEM_REG, slot(*_some_memory(s)), (MEMORY,)),
    lambda i, s: Sent(R.REM_MEM_REG, slot(*_memory(i))),
    lambda i, s: Sent(R.REM_MEM_REG, slot(*_memory(i)), (MEMORY,)),
    lambda i, s: Sent(R.SET_VRING_NUM, state(i, 1 << (s.number() % 17))),
    lambda i, s: Sent(R.SET_VRING_BASE, state(i, s.number(2))),
    lambda i, s: Sent(R.SET_VRING_ADDR, _ring_address(i, s.number() << 4)),
    lambda i, s: Sent(R.SET_VRING_KICK, U64(i), (EVENTFD,)),
    lambda i, s: Sent(R.SET_VRING_KICK, U64(i), (s.number(),)),
    lambda i, s: Sent(R.SET_VRING_CALL, U64(i), (s.number(),)),
    lambda i, s: Sent(R.SET_VRING_CALL, U64(i | 0x100)),
    lambda i, s: Sent(R.SET_VRING_ERR, U64(i), (s.number(),)),
    lambda i, s: Sent(R.SET_VRING_ENABLE, state(i, s.number() & 1)),
    lambda i, s: Sent(R.GET_VRING_BASE, state(i, 0)),
    lambda i, s: Sent(R.GET_QUEUE_NUM),
    lambda i, s: Sent(R.GET_MAX_MEM_SLOTS),
    lambda i, s: Sent(R.GET_CONFIG, config(s.number() & 15, s.number() & 31)),
    lambda i, s: Sent(R.SET_CONFIG, config(0, 16, s.number() & 1)[:12] + s.some(16).ljust(16)),
    lambda i, s: Sent(R.SET_BACKEND_REQ_FD, b"", (SOCKET,)),
    lambda i, s: Sent(R.SET_BACKEND_REQ_FD, b"", (s.number(),)),
    lambda i, s: Sent(R.RESET_DEVICE),
    lambda i, s: Sent(R.SET_STATUS, U64(s.number())),
    lambda i, s: Sent(R.GET_STATUS),
)


def _hello(index: int) -> list[Sent]:
    return [
        Sent(R.SET_PROTOCOL_FEATURES, U64(PROTOCOL_FEATURES)),
        Sent(R.SET_FEATURES, U64(EVERY_FEATURE)),
        Sent(R.SET_BACKEND_REQ_FD, b"", (SOCKET,)),
        Sent(R.ADD_MEM_REG, slot(*_memory(0)), (MEMORY,)),
    ]


def _start(index: int) -> list[Sent]:
    return [
        Sent(R.SET_VRING_NUM, state(index, RING_SIZE)),
        Sent(R.SET_VRING_BASE, state(index, 0)),
        Sent(R.SET_VRING_ADDR, _ring_address(index)),
        Sent(R.SET_VRING_CALL, U64(index), (EVENTFD,)),
        Sent(R.SET_VRING_ERR, U64(index), (EVENTFD,)),
        Sent(R.SET_VRING_KICK, U64(index), (EVENTFD,)),
        Sent(R.SET_VRING_ENABLE, state(index, 1)),
    ]


def _start_all(index: int) -> list[Sent]:
    return [sent for ring in range(5) for sent in _start(ring)]


def _stop_all(index: int) -> list[Sent]:
    return [Sent(R.GET_VRING_BASE, state(ring, 0)) for ring in range(5)]


SEQUENCES: Final = (_hello, _start_all, _start, _stop_all)

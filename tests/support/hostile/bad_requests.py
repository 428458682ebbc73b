"""Requests that a front end must not make, with the log text of each."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from protocol import vhost_user_payloads as p
from protocol.vhost_user import Request
from tests.support.end_to_end import (
    MIB,
    PAGE,
)
from vhost_balloon.simulator.memory import create_memfd

R = Request
TOP = 1 << 64
MEMORY_START, MEMORY_USER = 0, 0x7F5A_0000_0000  # of the region that every guest here has
REFUSED_BY_REPLY: dict[int, bytes] = {
    R.GET_FEATURES: bytes(8),
    R.GET_PROTOCOL_FEATURES: bytes(8),
    R.GET_QUEUE_NUM: bytes(8),
    R.GET_MAX_MEM_SLOTS: bytes(8),
    R.GET_STATUS: bytes(8),
    R.GET_CONFIG: b"",
    R.GET_INFLIGHT_FD: bytes(20),
    R.SET_DEVICE_STATE_FD: p.build_u64(0x101),
    R.GET_SHMEM_CONFIG: bytes(2056),
}
"""Requests that always have a reply, and the one that says no; all others are acknowledged."""


@contextmanager
def descriptors(kinds: Sequence[str]) -> Iterator[list[int]]:
    """Open one descriptor of each kind."""
    with ExitStack() as stack:
        fds = []
        for kind in kinds:
            fd, extra = _open(kind)
            for number in (fd, *extra):
                stack.callback(os.close, number)
            fds.append(fd)
        yield fds


def _open(kind: str) -> tuple[int, list[int]]:
    match kind:
        case "eventfd":
            return os.eventfd(0), []
        case "pipe":
            reader, writer = os.pipe()
            return reader, [writer]
        case "socket":
            ours, theirs = socket.socketpair()
            return ours.detach(), [theirs.detach()]
        case "directory":
            return os.open("/", os.O_RDONLY), []
        case "device":
            return os.open("/dev/zero", os.O_RDWR), []
        case "path":
            return os.open(__file__, os.O_PATH), []
        case "read-only":
            memfd = create_memfd(16 * MIB)
            return os.open(f"/proc/self/fd/{memfd}", os.O_RDONLY), [memfd]
        case _:
            return create_memfd(16 * MIB), []


def region(guest: int, size: int, user: int, offset: int = 0) -> bytes:
    return struct.pack("<QQQQ", guest, size, user, offset)


def slot(guest: int, size: int, user: int = 1 << 46, offset: int = 0) -> bytes:
    return bytes(8) + region(guest, size, user, offset)


def table(*regions: bytes, count: int | None = None) -> bytes:
    return struct.pack("<II", len(regions) if count is None else count, 0) + b"".join(regions)


def state(index: int, number: int) -> bytes:
    return p.build_vring_state(index, number)


def addr(index: int, descriptor: int, available: int, used: int, flags: int = 0) -> bytes:
    return struct.pack("<IIQQQQ", index, flags, descriptor, used, available, 0)


def config(offset: int, size: int, flags: int = 0, length: int | None = None) -> bytes:
    return p.CONFIG.pack(offset, size, flags) + bytes(size if length is None else length)


U64 = p.build_u64
G = 1 << 32  # a guest address where nothing is yet
Case = tuple[int, bytes, Sequence[str], str]
STRAY = "do not belong to it"
BAD: list[Case] = [
    # sizes
    (R.GET_FEATURES, bytes(8), (), "payload"),
    (R.GET_PROTOCOL_FEATURES, bytes(1), (), "payload"),
    (R.SET_FEATURES, bytes(7), (), "payload"),
    (R.SET_FEATURES, bytes(9), (), "payload"),
    (R.SET_OWNER, bytes(8), (), "payload"),
    (R.SET_VRING_NUM, bytes(7), (), "payload"),
    (R.SET_VRING_ADDR, bytes(48), (), "payload"),
    (R.SET_VRING_KICK, b"", ("eventfd",), "payload"),
    (R.ADD_MEM_REG, bytes(32), ("memfd",), "payload"),
    (R.SET_MEM_TABLE, b"", (), "payload"),
    (R.SET_MEM_TABLE, table(count=1), ("memfd",), "payload"),
    (R.GET_CONFIG, bytes(11), (), "payload"),
    (R.GET_CONFIG, config(0, 16, length=15), (), "payload"),
    (R.SET_CONFIG, config(0, 16, length=17), (), "payload"),
    (R.SET_OWNER, bytes(1 << 20), (), "too long"),
    # descriptors
    (R.GET_FEATURES, b"", ("memfd",), STRAY),
    (R.SET_OWNER, b"", ("memfd",) * 250, STRAY),
    (R.ADD_MEM_REG, slot(G, PAGE), (), "0 descriptors"),
    (R.ADD_MEM_REG, slot(G, PAGE), ("memfd", "memfd"), "2 descriptors"),
    (R.SET_MEM_TABLE, table(region(0, PAGE, 0)), (), "0 descriptors"),
    (R.SET_VRING_KICK, U64(0), (), "0 descriptors"),
    (R.SET_VRING_KICK, U64(0), ("eventfd", "eventfd"), "2 descriptors"),
    (R.SET_VRING_KICK, U64(0x100), (), "polling"),
    (R.SET_VRING_CALL, U64(0x100), ("eventfd",), STRAY),
    (R.SET_VRING_CALL, U64(0), ("memfd",), "not an eventfd"),
    (R.SET_VRING_KICK, U64(0), ("socket",), "not an eventfd"),
    (R.SET_VRING_KICK, U64(0), ("memfd",), "not an eventfd"),
    (R.SET_VRING_ERR, U64(0), ("directory",), "not an eventfd"),
    (R.SET_VRING_CALL, U64(0x200), (), "reserved bits"),
    (R.SET_BACKEND_REQ_FD, b"", (), "0 descriptors"),
    (R.SET_BACKEND_REQ_FD, b"", ("socket", "socket"), "2 descriptors"),
    (R.SET_BACKEND_REQ_FD, b"", ("eventfd",), "socket"),
    (R.SET_BACKEND_REQ_FD, b"", ("memfd",), "socket"),
    *(
        (R.ADD_MEM_REG, slot(G, PAGE), (kind,), text)
        for kind, text in (
            ("eventfd", ""),
            ("socket", "not a file"),
            ("pipe", "not a file"),
            ("directory", "not a file"),
        )
    ),
    # regions
    (R.ADD_MEM_REG, slot(G, 0), ("memfd",), "size 0"),
    (R.ADD_MEM_REG, slot(TOP - PAGE, 2 * PAGE), ("memfd",), "wrap"),
    (R.ADD_MEM_REG, slot(G, 2 * PAGE, user=TOP - PAGE), ("memfd",), "wrap"),
    (R.ADD_MEM_REG, slot(G, 2 * PAGE, offset=TOP - PAGE), ("memfd",), "wrap"),
    (R.ADD_MEM_REG, slot(G, TOP - 1), ("memfd",), ""),
    (R.ADD_MEM_REG, slot(MEMORY_START, PAGE), ("memfd",), "overlap in their guest"),
    (R.ADD_MEM_REG, slot(64 * MIB - PAGE, 2 * PAGE), ("memfd",), "overlap in their guest"),
    (R.ADD_MEM_REG, slot(G, PAGE, user=MEMORY_USER), ("memfd",), "overlap in their user"),
    (R.REM_MEM_REG, slot(G, PAGE), (), "no such region"),
    (R.REM_MEM_REG, slot(MEMORY_START, PAGE, user=MEMORY_USER), (), "no such region"),
    (R.SET_MEM_TABLE, table(count=9), (), "9 regions"),
    (R.SET_MEM_TABLE, table(count=(1 << 32) - 1), (), "regions"),
    (
        R.SET_MEM_TABLE,
        table(region(0, 2 * PAGE, 0), region(PAGE, PAGE, 1 << 40)),
        ("memfd", "memfd"),
        "overlap",
    ),
    (
        R.SET_MEM_TABLE,
        table(region(0, MIB, 0), region(MIB, MIB, 1 << 40)),
        ("read-only", "memfd"),
        "cannot be mapped",
    ),
    # rings
    *((R.SET_VRING_NUM, state(0, size), (), "power of two") for size in (0, 3, 32769, 65536)),
    (R.SET_VRING_NUM, state(5, 64), (), "ring 5"),
    (R.SET_VRING_NUM, state(0, 32), (), "started"),
    (R.SET_VRING_BASE, state(0, 65536), (), "16 bits"),
    (R.SET_VRING_BASE, state(0, 9), (), "started"),
    (R.SET_VRING_BASE, state((1 << 32) - 1, 0), (), "does not exist"),
    (R.SET_VRING_ENABLE, state(0, 2), (), "not 0 or 1"),
    (R.SET_VRING_ENABLE, state(5, 1), (), "ring 5"),
    (R.SET_VRING_ADDR, addr(0, MEMORY_USER + 8, MEMORY_USER, MEMORY_USER), (), "aligned"),
    (R.SET_VRING_ADDR, addr(0, MEMORY_USER, MEMORY_USER + 1, MEMORY_USER), (), "aligned"),
    (R.SET_VRING_ADDR, addr(0, MEMORY_USER, MEMORY_USER, MEMORY_USER + 2), (), "aligned"),
    (R.SET_VRING_ADDR, addr(0, 0, 0, 0, flags=1), (), "logging"),
    (R.SET_VRING_ADDR, addr(9, 0, 0, 0), (), "ring 9"),
    (R.SET_VRING_ADDR, addr(0, 0, 0, 0), (), "started"),
    (R.SET_VRING_KICK, U64(4), ("eventfd",), "no size or no address"),
    (R.SET_VRING_KICK, U64(255), ("eventfd",), "ring 255"),
    (R.GET_VRING_BASE, state(5, 0), (), "ring 5"),
    # features, config, status
    (R.SET_FEATURES, U64(1 << 63), (), "not offered"),
    (R.SET_FEATURES, U64(1 << 34), (), "not offered"),
    (R.SET_PROTOCOL_FEATURES, U64(1 << 63 | 1 << 3), (), "not offered"),
    (R.GET_CONFIG, config(16, 1), (), "outside"),
    (R.GET_CONFIG, config(0, 17), (), "outside"),
    (R.GET_CONFIG, config(0, 0), (), "outside"),
    (R.GET_CONFIG, config((1 << 32) - 1, 2), (), "outside"),
    (R.GET_CONFIG, config(0, (1 << 32) - 1, length=0), (), "payload"),
    (R.SET_CONFIG, config(12, 5), (), "outside"),
    (R.SET_CONFIG, config(0, 0), (), "outside"),
    (R.SET_CONFIG, config(0, 16, flags=2), (), "flags"),
    (R.SET_STATUS, U64(256), (), "8 bits"),
    # what is not offered, and what nobody knows
    *((request, bytes(8), (), "not supported") for request in (R.SET_LOG_FD, R.SEND_RARP)),
    (R.SET_LOG_BASE, bytes(16), ("memfd",), "not supported"),
    (R.GET_INFLIGHT_FD, bytes(20), (), "not supported"),
    (R.SET_INFLIGHT_FD, bytes(20), ("memfd",), "not supported"),
    (R.SET_DEVICE_STATE_FD, bytes(8), ("pipe",), "not supported"),
    (R.CHECK_DEVICE_STATE, b"", (), "not supported"),
    (R.GET_SHMEM_CONFIG, b"", (), "not supported"),
    (R.IOTLB_MSG, bytes(26), (), "not supported"),
    (R.POSTCOPY_ADVISE, b"", (), "not supported"),
    (R.VRING_KICK, state(0, 0), (), "not supported"),
    (R.GPU_SET_SOCKET, b"", ("socket",), "not supported"),
    *((request, b"x", (), "not supported") for request in (0, 46, 1000, (1 << 32) - 1)),
]


LEFT_ALONE: Final[list[Case]] = [
    *(
        (R.ADD_MEM_REG, slot(G, MIB), (kind,), text)
        for kind, text in (
            ("device", "memory of a device"),
            ("path", "of a file of"),
            ("read-only", "cannot be mapped"),
        )
    ),
    (R.ADD_MEM_REG, slot(G, 16 * MIB + 1), ("memfd",), "of a file of"),
    (R.ADD_MEM_REG, slot(G, MIB, offset=16 * MIB), ("memfd",), "of a file of"),
    (R.ADD_MEM_REG, slot(G, MIB, offset=1 << 63), ("memfd",), "of a file of"),
]
"""Regions whose file cannot be used. They cost the VM nothing but themselves."""


def describe(case: Case) -> str:
    request, payload, fds, text = case
    name = request.name if isinstance(request, Request) else str(request)
    return f"{name}-{len(payload)}-{'+'.join(sorted(set(fds)))}-{text}".replace(" ", "-")

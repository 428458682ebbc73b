"""Target: state left by an earlier process, as a record file or as its documents."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from contextlib import closing
from typing import Any, Final
from zlib import crc32

import trio

from protocol.virtio_balloon import NUM_QUEUES
from tests.support.helpers import MIB, memfd
from vhost_balloon.errors import StateError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.figures.counters import Counters, counters_document
from vhost_balloon.front_end.parts import LeftConnection
from vhost_balloon.restart.reattach import read_connection
from vhost_balloon.restart.records import LeftRecord, find_record, restore_vm
from vhost_balloon.store.descriptors import CONNECTION, RECORD, Store
from vhost_balloon.store.record import AREAS, MAGIC, Record
from vhost_balloon.store.shelf import Shelf
from vhost_balloon.vm.settings import VmSettings, settings_to_json
from vhost_balloon.vm.vm import Vm

INVARIANT: Final = (
    "Whatever bytes a record's file or its areas hold, reading it gives a VM and a connection that "
    "can be served, or a StateError, and no descriptor is left open."
)

_NAME: Final = f"{CONNECTION}1"
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_ORDER: Final = ("vm", "connection", "balloon", "stats", "counters")
_FILE_SIZE: Final = 1 << 16


def _file(data: bytes) -> OwnedFd:
    """Make a record file of the bytes, with a valid header checksum."""
    fd = memfd(_FILE_SIZE, seals=_SEALS)
    text = data[:900]
    os.pwrite(fd.fileno(), MAGIC + len(text).to_bytes(4, "little"), 0)
    os.pwrite(fd.fileno(), crc32(text).to_bytes(4, "little") + text, 12)
    os.pwrite(fd.fileno(), data[900:], 1024)
    return fd


def _areas(data: bytes) -> OwnedFd:
    """Make a record whose areas hold the input's lines; the last is a request in flight."""
    record = Record.create()
    lines = data.split(b"\n")
    for area, line in zip(_ORDER, lines, strict=False):
        if line and len(line) <= record._areas[area].capacity:
            record._areas[area].save(line)
    if len(lines) > len(_ORDER):
        record.journal.begin(lines[len(_ORDER)][:1000], ("1.3",))
        record.journal.taken()
    fd = OwnedFd(os.dup(record.fd.fileno()))
    record.close()
    return fd


async def _read(data: bytes) -> None:
    make = _areas if data[:1] < b"\x80" else _file
    ours, theirs = socket.socketpair()
    stored = {f"{RECORD}1": make(data[1:]), _NAME: OwnedFd(ours.detach())}
    store = Store(inherited=stored.items())
    del stored
    with theirs, closing(Shelf.create()) as shelf:
        fds = shelf.put([memfd(MIB), *(OwnedFd(os.eventfd(0)) for _ in range(4))])
        with closing(_successor(shelf)) as found:
            found.load()
            left = await find_record(store)
            if left is not None:
                _use(left, store, found)
        await store.sweep()
        for fd in fds:
            fd.close()


def _successor(shelf: Shelf) -> Shelf:
    return Shelf(OwnedFd(os.dup(end.fileno())) for end in shelf.ends)


def _use(found: LeftRecord, store: Store, shelf: Shelf) -> None:
    vm = Vm("vm", store=store)
    restore_vm(vm, found.areas)
    json.dumps(counters_document(vm.counters), allow_nan=False)
    if found.areas["connection"] is not None:
        sock = store.take(_NAME)
        assert sock is not None
        try:
            left = read_connection(
                found.areas, sock, found.record.journal, shelf, pipe=None, outlives=False
            )
        except StateError:
            sock.close()  # the caller owns it now
        else:
            _close(left)
    found.record.close()


def _close(left: LeftConnection) -> None:
    """Close a connection, checking that its rings can be served."""
    for ring in left.rings:
        assert ring.setup.size > 0
        assert 0 <= ring.bound.virtqueue.base <= 0xFFFF
        ring.bound.virtqueue.release()
        ring.kick.close()
    for eventfd in (*left.calls.values(), *left.errs.values()):
        eventfd.close()
    if left.pending is not None:
        left.pending.message.close()
    if left.channel is not None:
        left.channel.close()
    left.memory.close()
    left.transport.close()


def run(data: bytes) -> None:
    before = len(os.listdir("/proc/self/fd"))
    trio.run(_read, data)
    assert len(os.listdir("/proc/self/fd")) <= before, "a descriptor was left open"


def _ring(index: int) -> dict[str, Any]:
    user = index << 16
    address = {
        "index": index,
        "descriptor": user,
        "available": user + 4096,
        "used": user + 8192,
        "log": 0,
    }
    return {"size": 64, "address": address, "base": 0, "enabled": True, "started": index < 2}


_CONNECTION: Final[dict[str, Any]] = {
    "socket": _NAME,
    "peer-connected": True,
    "channel": None,
    "session": {
        "offered": 0x40000000,
        "features": 0x40000000,
        "protocol-features": 0,
        "status": 7,
        "rings": [_ring(index) for index in range(NUM_QUEUES)],
        "returned-bases": [{"ring": 4, "base": 1}],
    },
    "regions": [
        {
            "guest-address": at * MIB,
            "size": MIB,
            "user-address": at * MIB,
            "mmap-offset": 0,
            "fd": None if at else "1.0",
            "left-out": bool(at),
            "untouched": bool(at),
        }
        for at in range(2)
    ],
    "judged": True,
    "rings": [
        {"index": 0, "lead": 0, "base": 0, "broken": None, "kick": "1.1"},
        {"index": 1, "lead": 2, "base": 0, "broken": "head", "kick": "1.2"},
    ],
    "calls": [{"ring": 0, "fd": "1.3"}],
    "errs": [{"ring": 0, "fd": "1.4"}],
    "partial": {"data": "01", "fds": ["1.3"], "skipped": 0, "fds-lost": False, "unsure": None},
    "applied": {"sequence": 0, "reply": None},
    "foreign": False,
}
_DOCUMENTS: Final[dict[str, Any]] = {
    "balloon": {
        "order": None,
        "num-pages": 0,
        "actual": 0,
        "free-page-hint-cmd-id": 0,
        "poison-val": 0,
        "config-unread": False,
    },
    "stats": {"values": [[4, 1]], "last-update": 1, "updated": 1.5},
    "vm": {
        "settings": settings_to_json(VmSettings()),
        "paused": False,
        "stats-interval": 1.0,
        "crashes": {"count": 0, "last": 0.0},
    },
    "counters": counters_document(Counters()),
    "connection": _CONNECTION,
}


def _seed(**changes: Any) -> bytes:
    documents = _DOCUMENTS | changes
    lines = [json.dumps(documents[area]).encode() for area in _ORDER]
    return b"\0" + b"\n".join([*lines, bytes((1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0))])


_HEADER: Final = json.dumps(
    {
        "version": 1,
        "build": "x",
        "generation": 0,
        "areas": {name: [1024 + 4096 * at, 4096] for at, name in enumerate(AREAS)},
    }
).encode()
SEEDS: Final = (
    _seed(),
    _seed(connection=_CONNECTION | {"partial": None}),
    _seed(connection=None),
    b"\xff" + _HEADER,
)
TOKENS: Final = (
    *(b'{ } [ ] " , : null true false NaN Infinity -1 1e999 65536 4294967296 \n'.split(b" ")),
    *(b'"1.0"', b'"1.2"', b'".connection-1"', b'"head"', b"18446744073709551616", b"[" * 2000),
)

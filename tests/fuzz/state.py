"""Target: what a process before this one may have left, as a record's file or as its documents."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from typing import Any, Final
from zlib import crc32

import trio

from protocol.virtio_balloon import NUM_QUEUES
from tests.helpers import MIB, memfd
from vhost_balloon.counters import Counters
from vhost_balloon.errors import StateError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.inheritance import AREAS, LeftVm, left_vms
from vhost_balloon.record import MAGIC, Record
from vhost_balloon.resume import Left, read_connection
from vhost_balloon.state import counters_document
from vhost_balloon.store import Scope, Store
from vhost_balloon.vm import Machine
from vhost_balloon.vm_spec import VmSpec

INVARIANT: Final = (
    "Whatever bytes a record's file or its areas hold, reading it gives a VM and a connection that "
    "can be served, or a StateError, and no descriptor is left open."
)

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_ORDER: Final = ("vm", "connection", "balloon", "stats", "counters")
_FILE_SIZE: Final = 1 << 16


def _file(data: bytes) -> OwnedFd:
    """The bytes as a record's file; its header's checksum is right."""
    fd = memfd(_FILE_SIZE, seals=_SEALS)
    text = data[:900]
    os.pwrite(fd.fileno(), MAGIC + len(text).to_bytes(4, "little"), 0)
    os.pwrite(fd.fileno(), crc32(text).to_bytes(4, "little") + text, 12)
    os.pwrite(fd.fileno(), data[900:], 1024)
    return fd


def _areas(data: bytes) -> OwnedFd:
    """A record whose areas hold the lines of the input; the last is a request in flight."""
    record = Record.create()
    lines = data.split(b"\n")
    for area, line in zip(_ORDER, lines, strict=False):
        if line and len(line) <= record._areas[area].capacity:
            record._areas[area].save(line)
    if len(lines) > len(_ORDER):
        record.journal.begin(lines[len(_ORDER)][:1000], (".e2",))
        record.journal.taken()
    fd = OwnedFd(os.dup(record.fd.fileno()))
    record.close()
    return fd


def _left(record: OwnedFd) -> tuple[Store, socket.socket]:
    """A store with the record and one descriptor of each kind."""
    ours, theirs = socket.socketpair()
    files = {".v1": record, ".s": OwnedFd(ours.detach()), ".m": memfd(MIB)}
    files |= {f".e{number}": OwnedFd(os.eventfd(0)) for number in range(4)}
    return Store(inherited=files.items()), theirs


async def _read(data: bytes) -> None:
    make = _areas if data[:1] < b"\x80" else _file
    store, peer = _left(make(data[1:]))
    with peer:
        for vm in await left_vms(store):
            _use(vm, store)
        store.sweep()


def _use(vm: LeftVm, store: Store) -> None:
    machine = Machine(store=store)
    served = machine.add(vm.spec)
    try:
        served.restore_orders(vm.areas["vm"])
        served.restore_counters(vm.areas["counters"])
    except StateError:
        pass
    else:
        json.dumps(counters_document(served.counters), allow_nan=False)
    scope = Scope(store)
    if vm.areas["connection"] is not None:
        sock = scope.adopt(".s")
        try:
            left = read_connection(vm.areas, sock, vm.record.journal, scope, outlives=False)
        except StateError:
            sock.close()  # it is the caller's then
        else:
            _close(left)
    vm.drop()


def _close(left: Left) -> None:
    """It can be served: what is there is what serving needs."""
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
    assert len(os.listdir("/proc/self/fd")) <= before, "a descriptor is left open"


def _ring(index: int) -> dict[str, Any]:
    user = index << 16
    address = [index, user, user + 4096, user + 8192, 0]
    return {"size": 64, "address": address, "base": 0, "enabled": True, "started": index < 2}


_CONNECTION: Final[dict[str, Any]] = {
    "socket": ".s",
    "peer-connected": True,
    "channel": None,
    "session": {
        "offered": 0x40000000,
        "features": 0x40000000,
        "protocol-features": 0,
        "status": 7,
        "rings": [_ring(index) for index in range(NUM_QUEUES)],
        "returned-bases": [[4, 1]],
    },
    "regions": [[0, MIB, 0, 0, ".m"]],
    "rings": [[0, 0, 0, None, ".e0"], [1, 2, 0, "head", ".e1"]],
    "calls": [[0, ".e2"]],
    "errs": [[0, ".e3"]],
    "partial": {"data": "01", "fds": [".e2"], "skipped": 0, "fds-lost": False, "unsure": None},
    "applied": [0, None],
    "foreign": False,
}
_DOCUMENTS: Final[dict[str, Any]] = {
    "balloon": [None, 0, 0, 0, 0, False],
    "stats": {"values": [[4, 1]], "last-update": 1, "updated": 1.5},
    "vm": {
        "spec": VmSpec("vm").to_json(),
        "paused": False,
        "stats-interval": 1.0,
        "leaving": False,
        "crashes": [0, 0.0],
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
        "areas": {name: [1024 + 4096 * at, 4096] for at, name in enumerate((*AREAS, "journal"))},
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
    *(b'".m"', b'".s"', b'".e1"', b'"head"', b"18446744073709551616", b"[" * 2000),
)

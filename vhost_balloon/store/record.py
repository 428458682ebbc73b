"""The VM's record: a small memory file that a later process finds in the descriptor store.

Values are written in place through a mapping, each in two slots with checksums (store/slots.py); so
a process that is killed leaves the state before or after a change. The header says where each value
lies, so that another version finds those that it knows.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
from typing import Any, Final
from zlib import crc32

from vhost_balloon import __version__
from vhost_balloon.errors import StateError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.store.journal import Journal
from vhost_balloon.store.slots import Slots

STATE_VERSION: Final = 4
"""Version of the documents in the areas. Increase it whenever their format changes, and add to
restart/migrations.py a step that lifts the previous version."""

MAGIC: Final = b"vhostbln"
_HEAD: Final = struct.Struct("<8sII")  # magic, length and checksum of the header's JSON
_HEADER_SIZE: Final = 1024
JOURNAL: Final = "journal"
AREAS: Final = {
    "balloon": 1 << 9,
    "stats": 3 << 9,
    "vm": 1 << 13,
    "counters": 1 << 14,
    "connection": 1 << 19,
    "shelf": 1 << 9,
    "arguments": 1 << 14,
    JOURNAL: 3 << 16,
}
"""Sizes in bytes, for both slots together. Pages never written to cost nothing."""
DOCUMENTS: Final = tuple(name for name in AREAS if name != JOURNAL)
"""Areas that hold JSON documents."""

_SMALLEST: Final = {JOURNAL: 1 << 13}
"""Least sizes in bytes: every request of the vhost-user specification has to fit the journal."""

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MAX_SIZE: Final = 1 << 24


def _encode(document: object) -> bytes:
    return _ENCODER.encode(document).encode()


_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), check_circular=False)


class Record:
    """One record, mapped; it owns fd. version and build identify the program that created it."""

    def __init__(self, fd: OwnedFd) -> None:
        """Open a record of any version. Raises StateError if it is damaged or not a record."""
        size = os.fstat(fd.fileno()).st_size
        if not _HEADER_SIZE < size <= _MAX_SIZE:
            raise StateError(f"a record cannot have {size} bytes")
        if fcntl.fcntl(fd.fileno(), fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK == 0:
            raise StateError("the record is not sealed")
        self._mapping = mmap.mmap(fd.fileno(), size)
        try:
            self._open(size)
        except BaseException:
            self._mapping.close()
            raise
        self.fd = fd

    def _open(self, size: int) -> None:
        header = _read_header(self._mapping)
        try:
            self.version = int(header["version"])
            self.build = str(header["build"])
            self.generation = int(header["generation"])
            places = {
                str(name): (int(at), int(length)) for name, (at, length) in header["areas"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise StateError(f"header: {error!r}") from None
        for name in AREAS:
            at, length = places.get(name, (0, 0))
            if at < _HEADER_SIZE or length < _SMALLEST.get(name, 128) or at + length > size:
                raise StateError(f"area {name} is missing")
        with memoryview(self._mapping) as whole:
            views = {name: whole[places[name][0] : sum(places[name])] for name in AREAS}
        self.journal = Journal(views.pop(JOURNAL))
        self._areas = {name: Slots(view) for name, view in views.items()}
        self._saved: dict[str, bytes | None] = {n: a.load() for n, a in self._areas.items()}

    @classmethod
    def create(cls, generation: int = 0) -> Record:
        """A new, empty record of this version; of two records, the newer has the higher
        generation."""
        fd = OwnedFd(os.memfd_create("vhost-balloon", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        places, at = {}, _HEADER_SIZE
        for name, length in AREAS.items():
            places[name] = (at, length)
            at += length
        os.ftruncate(fd.fileno(), at)
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, _SEALS)
        text = _encode(
            {
                "version": STATE_VERSION,
                "build": __version__,
                "generation": generation,
                "areas": places,
            }
        )
        os.pwrite(fd.fileno(), _HEAD.pack(MAGIC, len(text), crc32(text)) + text, 0)
        return cls(fd)

    def save(self, area: str, document: object) -> None:
        """Write a JSON document, unless the area holds the same. Raises ValueError if it does not
        fit."""
        self.save_json(area, _encode(document))

    def save_json(self, area: str, data: bytes) -> None:
        """Write a document that is encoded already; see save()."""
        if data != self._saved[area]:
            self._areas[area].save(data)
            self._saved[area] = data

    def load(self, area: str) -> Any:
        """The area's document, or None if there is none. Raises StateError if it is damaged."""
        data = self._areas[area].load()
        if data is None:
            if self._areas[area].written:
                raise StateError(f"area {area} is damaged")
            return None
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise StateError(f"area {area} is not JSON") from None

    def close(self) -> None:
        """Unmap it and close the descriptor."""
        for area in self._areas.values():
            area.release()
        self.journal.release()
        self._mapping.close()
        self.fd.close()


def _read_header(mapping: mmap.mmap) -> Any:
    magic, length, checksum = _HEAD.unpack_from(mapping, 0)
    if magic != MAGIC:
        raise StateError("not a record of a VM")
    text = mapping[_HEAD.size : _HEAD.size + length]
    if length > _HEADER_SIZE - _HEAD.size or crc32(text) != checksum:
        raise StateError("the header is damaged")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise StateError("the header is not JSON") from None

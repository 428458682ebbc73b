"""Records the request in flight, so that it is answered exactly once. Pure.

Theory of operation. A front end waits for a reply without a time limit, with QEMU's lock held, and
a message received from the socket is lost with the process that received it. So a request is
written here before it is taken from the socket, and its reply before it is sent:

    SEEN    peeked at and written here; possibly taken from the socket
    TAKEN   taken from the socket; possibly acted on, not answered
    DONE    acted on; its reply is written here, not sent
    SENDING the reply is being sent; store/reply_pipe.py tells whether it was
    SENT    answered, or no reply was due

Two entries alternate, each with a checksum. One that was being written when the process died does
not count; its request is still in the socket.

A request that is longer than `longest` is not written: its reader skips the payload and refuses it
(front_end/transport.py), in this process or in the next one.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from zlib import crc32


class Phase(enum.IntEnum):
    """How far the request has got; see the module."""

    SEEN = 1
    TAKEN = 2
    DONE = 3
    SENDING = 4
    SENT = 5


_HEAD: Final = struct.Struct("<QB3xIIIiI")
"""Sequence, phase, sizes of request and names, their checksum, the reply's size (-1: none) and
checksum."""
_PHASE_AT: Final = 8
_REPLY: Final = struct.Struct("<iI")
_REPLY_AT: Final = 24
_NO_REPLY: Final = -1
RESERVE: Final = 2560
"""Bytes of an entry that a request leaves free: for the names of its descriptors (store/shelf.py)
and for the longest reply in the vhost-user specification (GET_SHMEM_CONFIG's, 2056 bytes)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A request: its bytes with the header, its descriptors' names, and its reply's payload (None
    before DONE, and if no reply is due)."""

    sequence: int
    phase: Phase
    request: bytes
    names: tuple[str, ...] = ()
    reply: bytes | None = None


class Journal:
    """The journal in view, which is taken over."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._half = len(view) // 2
        self.longest: Final = self._half - _HEAD.size - RESERVE
        """Bytes that a request may have."""
        self._start = 0
        self._body = 0
        latest = self._latest()
        self.sequence = 0 if latest is None else latest[0].sequence
        """The number of the newest request."""
        if latest is not None:
            self._start = latest[1]
            self._body = self._start + _HEAD.size + self._used(latest[0])

    @staticmethod
    def _used(entry: Entry) -> int:
        return len(entry.request) + len(":".join(entry.names))

    def latest(self) -> Entry | None:
        """The newest request that was completely written."""
        latest = self._latest()
        return None if latest is None else latest[0]

    def begin(self, request: bytes, names: Sequence[str] = ()) -> None:
        """SEEN: write the request down, before it is taken from the socket.

        Raises ValueError if it does not fit; nothing is written then.
        """
        start = self._half if self._start == 0 else 0
        joined = ":".join(names).encode()
        self._check(_HEAD.size + len(request) + len(joined))
        self.sequence += 1
        body = start + _HEAD.size
        end = body + len(request)
        self._view[body:end] = request
        self._view[end : end + len(joined)] = joined
        checksum = crc32(joined, crc32(request, self.sequence & 0xFFFFFFFF))
        _HEAD.pack_into(
            self._view,
            start,
            self.sequence,
            Phase.SEEN,
            len(request),
            len(joined),
            checksum,
            _NO_REPLY,
            0,
        )
        self._start, self._body = start, end + len(joined)

    def taken(self) -> None:
        """TAKEN: the socket no longer holds the request."""
        self._view[self._start + _PHASE_AT] = Phase.TAKEN

    def done(self, reply: bytes | None) -> None:
        """DONE: the request's changes are on record; reply (None if none is due) comes next.

        Raises ValueError if the reply does not fit; nothing is written then.
        """
        if reply is not None:
            end = self._body + len(reply)
            self._check(end - self._start)
            self._view[self._body : end] = reply
            _REPLY.pack_into(self._view, self._start + _REPLY_AT, len(reply), crc32(reply))
        self._view[self._start + _PHASE_AT] = Phase.DONE

    def sending(self) -> None:
        """SENDING: the reply is in the reply pipe and goes out with the next system call."""
        self._view[self._start + _PHASE_AT] = Phase.SENDING

    def unsent(self) -> None:
        """DONE again: the reply did not go out."""
        self._view[self._start + _PHASE_AT] = Phase.DONE

    def sent(self) -> None:
        """SENT: the request needs nothing else."""
        self._view[self._start + _PHASE_AT] = Phase.SENT

    def release(self) -> None:
        self._view.release()

    def _check(self, size: int) -> None:
        """Raise ValueError if an entry of so many bytes does not fit."""
        if size > self._half:
            raise ValueError(f"{size} bytes do not fit a journal entry of {self._half}")

    def _latest(self) -> tuple[Entry, int] | None:
        entries = [(entry, start) for start in (0, self._half) for entry in self._read(start)]
        return max(entries, key=lambda found: found[0].sequence, default=None)

    def _read(self, start: int) -> list[Entry]:
        sequence, phase, size, names_size, checksum, reply_size, reply_checksum = _HEAD.unpack_from(
            self._view, start
        )
        room = self._half - _HEAD.size
        if sequence == 0 or size + names_size > room:
            return []
        body = start + _HEAD.size
        end = body + size
        request = bytes(self._view[body:end])
        joined = bytes(self._view[end : end + names_size])
        if crc32(joined, crc32(request, sequence & 0xFFFFFFFF)) != checksum:
            return []
        try:
            names = tuple(joined.decode("ascii").split(":")) if joined else ()
            entry_phase = Phase(phase)
        except ValueError:
            return []
        end += names_size
        reply = (
            None
            if reply_size < 0
            else bytes(self._view[end : min(end + reply_size, start + self._half)])
        )
        if reply is not None and (len(reply) != reply_size or crc32(reply) != reply_checksum):
            # The process died while it wrote the reply: the request has to be repeated.
            reply, entry_phase = None, min(entry_phase, Phase.TAKEN)
        return [Entry(sequence, entry_phase, request, names, reply)]

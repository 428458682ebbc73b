"""A message that arrives in parts, until it is complete. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from protocol.vhost_user import (
    HEADER,
    HEADER_SIZE,
    MAX_PAYLOAD_SIZE,
    VERSION,
    VERSION_MASK,
    HeaderFlag,
)
from vhost_balloon.errors import StreamError
from vhost_balloon.session.message import Message

if TYPE_CHECKING:
    from vhost_balloon.fds import OwnedFd

_FLAG_BITS = int(VERSION_MASK | HeaderFlag.REPLY | HeaderFlag.NEED_REPLY)


def parse_header(data: bytes | bytearray) -> tuple[int, int, int]:
    """Return request, flags and payload size. Raises StreamError if data is no header."""
    if len(data) < HEADER_SIZE:
        raise StreamError(f"{len(data)} bytes are not a header")
    request, flags, size = HEADER.unpack_from(data)
    if flags & VERSION_MASK != VERSION or flags & ~_FLAG_BITS:
        raise StreamError(f"header flags {flags:#x} are not valid")
    return request, flags, size


@dataclass(slots=True)
class Partial:
    """The parts so far.

    skipped: bytes of a payload that is too long to keep. fds_lost: see Message. unsure: size and
    checksum of the last part while it may still be in the socket as well.
    """

    data: bytearray = field(default_factory=bytearray)
    fds: list[OwnedFd] = field(default_factory=list)
    skipped: int = 0
    fds_lost: bool = False
    unsure: tuple[int, int] | None = None

    def missing(self) -> int:
        """Bytes missing from the header or, after it, from the message. Raises StreamError."""
        if len(self.data) < HEADER_SIZE:
            return HEADER_SIZE - len(self.data)
        return parse_header(self.data)[2] + HEADER_SIZE - len(self.data) - self.skipped

    def add(self, data: bytes) -> None:
        """Add bytes, at most missing()."""
        whole_header = len(self.data) >= HEADER_SIZE
        if whole_header and parse_header(self.data)[2] > MAX_PAYLOAD_SIZE:
            self.skipped += len(data)
        else:
            self.data += data

    def message(self) -> Message:
        """The message, once nothing is missing; it takes over the descriptors."""
        request, flags, _ = parse_header(self.data)
        fds, self.fds = self.fds, []
        payload = bytes(self.data[HEADER_SIZE:])
        return Message(request, flags, payload, fds, self.skipped > 0, self.fds_lost)

    def close(self) -> None:
        for fd in self.fds:
            fd.close()
        self.fds = []

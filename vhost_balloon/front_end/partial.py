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

    skipped: bytes of a payload that is too long to keep. fds_lost: see Message; true as well while
    it is not sure. unsure: size and checksum of the last part while it may still be in the socket
    as well. longest: the longest payload to keep.
    """

    data: bytearray = field(default_factory=bytearray)
    fds: list[OwnedFd] = field(default_factory=list)
    skipped: int = 0
    fds_lost: bool = False
    unsure: tuple[int, int] | None = None
    longest: int = MAX_PAYLOAD_SIZE

    def missing(self) -> int:
        """Bytes missing from the header or, after it, from the message. Raises StreamError."""
        if len(self.data) < HEADER_SIZE:
            return HEADER_SIZE - len(self.data)
        return parse_header(self.data)[2] + HEADER_SIZE - len(self.data) - self.skipped

    def add(self, data: bytes) -> None:
        """Add bytes, at most missing()."""
        if len(self.data) >= HEADER_SIZE and self._is_oversized():
            self.skipped += len(data)
        else:
            self.data += data

    def is_last(self, data: bytes) -> bool:
        """Whether these bytes, at most missing(), complete a message whose header is there."""
        return len(self.data) >= HEADER_SIZE and self.missing() == len(data)

    def _is_oversized(self) -> bool:
        return parse_header(self.data)[2] > self.longest

    def request(self) -> bytes:
        """The bytes of the message, once nothing is missing; of an oversized one, its header."""
        return bytes(self.data[:HEADER_SIZE] if self._is_oversized() else self.data)

    def message(self) -> Message:
        """The message, once nothing is missing; it takes over the descriptors."""
        request, flags, _ = parse_header(self.data)
        fds, self.fds = self.fds, []
        payload = self.request()[HEADER_SIZE:]
        return Message(request, flags, payload, fds, self._is_oversized(), self.fds_lost)

    def close(self) -> None:
        for fd in self.fds:
            fd.close()
        self.fds = []

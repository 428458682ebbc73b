"""A message that its front end sends in parts, until it is whole. Pure."""

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
    """Request, flags and payload size. Raises StreamError where this is no header."""
    if len(data) < HEADER_SIZE:
        raise StreamError(f"{len(data)} bytes are no header")
    request, flags, size = HEADER.unpack_from(data)
    if flags & VERSION_MASK != VERSION or flags & ~_FLAG_BITS:
        raise StreamError(f"header flags {flags:#x} are not vhost-user's")
    return request, flags, size


@dataclass(slots=True)
class Partial:
    """What has come so far.

    skipped: bytes of a payload that is too long to keep. fds_lost: see Message. unsure: size and
    checksum of what was added last, as long as the socket may hold it still.
    """

    data: bytearray = field(default_factory=bytearray)
    fds: list[OwnedFd] = field(default_factory=list)
    skipped: int = 0
    fds_lost: bool = False
    unsure: tuple[int, int] | None = None

    def missing(self) -> int:
        """Bytes until the header, or then the message, is whole. Raises StreamError."""
        if len(self.data) < HEADER_SIZE:
            return HEADER_SIZE - len(self.data)
        return parse_header(self.data)[2] + HEADER_SIZE - len(self.data) - self.skipped

    def add(self, data: bytes) -> None:
        """Take bytes, at most as many as are missing."""
        whole_header = len(self.data) >= HEADER_SIZE
        if whole_header and parse_header(self.data)[2] > MAX_PAYLOAD_SIZE:
            self.skipped += len(data)
        else:
            self.data += data

    def message(self) -> Message:
        """The message, once nothing is missing; the descriptors are its from now on."""
        request, flags, _ = parse_header(self.data)
        fds, self.fds = self.fds, []
        payload = bytes(self.data[HEADER_SIZE:])
        return Message(request, flags, payload, fds, self.skipped > 0, self.fds_lost)

    def close(self) -> None:
        for fd in self.fds:
            fd.close()
        self.fds = []

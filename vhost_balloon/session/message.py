"""One vhost-user message from the front end, and the requests that carry descriptors. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from protocol.vhost_user import NO_FD, Request
from vhost_balloon.errors import FrontEndError

if TYPE_CHECKING:
    from vhost_balloon.fds import OwnedFd


_VRING_FDS: Final = frozenset(
    {Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR}
)
WITH_FDS: Final = _VRING_FDS | {
    Request.SET_MEM_TABLE,
    Request.SET_BACKEND_REQ_FD,
    Request.ADD_MEM_REG,
    Request.REM_MEM_REG,
}
"""The requests that may carry descriptors; each handler checks how many."""


def carries_fds(request: int, payload: bytes) -> bool:
    """Whether such a request should come with descriptors."""
    if request in _VRING_FDS:
        return not int.from_bytes(payload[:8], "little") & NO_FD
    return request in WITH_FDS


@dataclass(slots=True)
class Message:
    """request and flags are from the header.

    oversized: the payload was too long to keep and was skipped. fds_lost: some descriptors could
    not be received (this process may have too many open), came where none belong, or were more than
    any request has.
    """

    request: int
    flags: int
    payload: bytes = b""
    fds: list[OwnedFd] = field(default_factory=list)
    oversized: bool = False
    fds_lost: bool = False

    @property
    def name(self) -> str:
        try:
            return Request(self.request).name
        except ValueError:
            return f"request {self.request}"

    def expect_fds(self, count: int) -> list[OwnedFd]:
        """Return the descriptors, which stay the message's; FrontEndError if not count of them."""
        if len(self.fds) != count:
            raise FrontEndError(f"{len(self.fds)} descriptors instead of {count}")
        return self.fds

    def release_fds(self) -> None:
        """Give up the descriptors, which have a new owner."""
        self.fds = []

    def close(self) -> None:
        """Close the descriptors that were not released."""
        for fd in self.fds:
            fd.close()
        self.release_fds()

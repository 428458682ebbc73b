"""Bytes at the front of a socket, and the descriptors that seem to come with them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vhost_balloon.fds import OwnedFd


@dataclass(slots=True)
class Peeked:
    """fds_lost: not all descriptors could be received, or more came than belong; those that were
    received are closed then."""

    data: bytes
    fds: list[OwnedFd] = field(default_factory=list)
    fds_lost: bool = False

    def confirm(self, fds_came: bool) -> bool:
        """Correct this, once the bytes are taken, by whether descriptors really came with them.

        If none came, those that were seen belong to a later message. If some came unseen, they
        belong nowhere. Returns whether all was as seen.
        """
        if fds_came == bool(self.fds or self.fds_lost):
            return True
        self.close()
        self.fds_lost = fds_came
        return False

    def lose(self) -> None:
        """Close the descriptors: their message is refused."""
        self.close()
        self.fds_lost = True

    def close(self) -> None:
        for fd in self.fds:
            fd.close()
        self.fds = []

"""What the service manager hands over to the hub: a socket for scrapes, and files of the host.

The files lie where the hub's sandbox hides them (OpenFile=); the policy reads them again and again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import trio

from vhost_balloon.errors import OperatorError
from vhost_balloon.fds import OwnedFd
from vhost_balloon.policy.host import HANDED_NAMES
from vhost_balloon.service.handed_over import METRICS, take_sockets


@dataclass(frozen=True, slots=True)
class Handed:
    """listener: a socket that listens for scrapes, or None. files: of the host's memory, by their
    names in HANDED_NAMES."""

    listener: trio.SocketListener | None = None
    files: Mapping[str, OwnedFd] = field(default_factory=dict)


NOTHING: Final = Handed()


def sort(inherited: Iterable[tuple[str, OwnedFd]]) -> Handed:
    """Tell files from the socket by name. Raises OperatorError for more than one socket."""
    files: dict[str, OwnedFd] = {}
    sockets: list[OwnedFd] = []
    for name, fd in inherited:
        if name not in HANDED_NAMES:
            sockets.append(fd)
        elif name in files:
            raise OperatorError(f"two files named {name!r} were handed over: leave one OpenFile=")
        else:
            files[name] = fd
    if len(sockets) > 1:
        raise OperatorError(
            f"{len(sockets)} sockets were handed over, but the hub takes one: leave one "
            "ListenStream= in its unit"
        )
    # The hub has no other socket, so the name says nothing.
    taken = take_sockets((METRICS, fd) for fd in sockets)
    return Handed(taken[METRICS].listener() if taken else None, files)

"""The effects that a vhost-user request has outside the session. Pure values.

Handlers yield them, and front_end/carrying_out.py executes them. If one fails, FrontEndError is
thrown into the handler, which then changes nothing and refuses the request. The executor owns an
effect's descriptors once it has succeeded.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from protocol.vhost_user_payloads import Region, VringAddress

if TYPE_CHECKING:
    from vhost_balloon.fds import OwnedFd


@dataclass(frozen=True, slots=True)
class RingSetup:
    """A ring at its start: queue size, the user addresses of its parts, next available index."""

    size: int
    address: VringAddress
    base: int


@dataclass(frozen=True, slots=True)
class AddRegion:
    """Map a region, or leave it alone; the result is its file's identity, None if unknown."""

    region: Region
    fd: OwnedFd


@dataclass(frozen=True, slots=True)
class RemoveRegion:
    """Unmap a region after running discards have finished their piece."""

    region: Region


@dataclass(frozen=True, slots=True)
class ReplaceRegions:
    """Map these regions and unmap all others; started rings move to the new mappings.

    The result is the identities of their files by guest address, where they are known.
    """

    regions: list[tuple[Region, OwnedFd]]


@dataclass(frozen=True, slots=True)
class StartRing:
    index: int
    kick: OwnedFd
    setup: RingSetup


@dataclass(frozen=True, slots=True)
class SetKick:
    """Replace the kick eventfd of a started ring."""

    index: int
    kick: OwnedFd


@dataclass(frozen=True, slots=True)
class StopRing:
    """Stop a ring after its current discard piece; the result is its base."""

    index: int


@dataclass(frozen=True, slots=True)
class SetCall:
    index: int
    fd: OwnedFd | None


@dataclass(frozen=True, slots=True)
class SetErr:
    index: int
    fd: OwnedFd | None


@dataclass(frozen=True, slots=True)
class SetBackendChannel:
    """The socket for requests to the front end."""

    fd: OwnedFd


@dataclass(frozen=True, slots=True)
class RingsChanged:
    """Rings were started, enabled or disabled, or features changed: decide anew which run."""


@dataclass(frozen=True, slots=True)
class NewDriver:
    """The guest's driver was loaded again; the contents of the old rings are void."""


@dataclass(frozen=True, slots=True)
class ActualChanged:
    """The guest (or a reset) changed how much the balloon holds."""


@dataclass(frozen=True, slots=True)
class TargetChanged:
    """The front end wrote num_pages, as at the end of a migration."""


Effect = (
    AddRegion
    | RemoveRegion
    | ReplaceRegions
    | StartRing
    | SetKick
    | StopRing
    | SetCall
    | SetErr
    | SetBackendChannel
    | RingsChanged
    | NewDriver
    | ActualChanged
    | TargetChanged
)

Steps = Generator[Effect, Any, bytes | None]
"""A request in progress: yields effects, receives their results, returns the reply's payload."""

"""What a vhost-user request asks the outside world to do. Pure values.

The session yields these, the back end carries them out. An effect that cannot be carried out is
answered by throwing FrontEndError into the session, which then changes nothing and refuses.
Descriptors in an effect belong to whoever carries it out, once it has succeeded.
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
    """What a ring starts with: queue size, its parts' user addresses, the next available index."""

    size: int
    address: VringAddress
    base: int


@dataclass(frozen=True, slots=True)
class AddRegion:
    region: Region
    fd: OwnedFd


@dataclass(frozen=True, slots=True)
class RemoveRegion:
    """Unmap, after running discards have come to the end of their piece."""

    region: Region


@dataclass(frozen=True, slots=True)
class ReplaceRegions:
    """Map all of these and unmap all others; started rings move to the new mappings."""

    regions: list[tuple[Region, OwnedFd]]


@dataclass(frozen=True, slots=True)
class StartRing:
    index: int
    kick: OwnedFd
    setup: RingSetup


@dataclass(frozen=True, slots=True)
class SetKick:
    """A new kick eventfd for a ring that is started already."""

    index: int
    kick: OwnedFd


@dataclass(frozen=True, slots=True)
class StopRing:
    """Stop the ring after the discard piece at hand; the answer is its base."""

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
    """Rings were started, enabled or disabled, or features changed: judge again what runs."""


@dataclass(frozen=True, slots=True)
class NewDriver:
    """The guest's driver was loaded again; what the old one's rings held means nothing now."""


@dataclass(frozen=True, slots=True)
class ConfigChanged:
    """num_pages changed: the guest is to be told once rings run."""


@dataclass(frozen=True, slots=True)
class ActualChanged:
    """The guest (or a reset) changed how much the balloon holds."""


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
    | ConfigChanged
    | ActualChanged
)

Steps = Generator[Effect, Any, bytes | None]
"""A request being handled: yields effects, is sent their results, returns the reply's payload."""

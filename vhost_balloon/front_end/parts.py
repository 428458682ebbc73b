"""The parts of a connection that are kept on record, and those taken over from the record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vhost_balloon.fds import EventFd, Kick
from vhost_balloon.front_end.channel import BackendChannel
from vhost_balloon.front_end.conversation import Pending
from vhost_balloon.front_end.partial import Partial
from vhost_balloon.front_end.transport import Transport
from vhost_balloon.memory.guest_memory import GuestMemory
from vhost_balloon.queues.ring import BoundRing
from vhost_balloon.queues.ring_set import RingSet
from vhost_balloon.session.effects import RingSetup
from vhost_balloon.session.session import Session


@dataclass(slots=True)
class LeftRing:
    """A started ring that the previous process left, bound to memory."""

    index: int
    setup: RingSetup
    bound: BoundRing
    kick: Kick
    broken: str | None


@dataclass(slots=True)
class LeftConnection:
    """A connection that the previous process left: live parts, ready to be served.

    peer_connected: see connection.serve_front_end(). foreign: a later version left the state, so
    nothing may be discarded. silent: no whole message has come yet.
    """

    session: Session
    peer_connected: bool
    foreign: bool
    partial: Partial | None
    silent: bool
    transport: Transport = field(init=False)
    memory: GuestMemory = field(default_factory=GuestMemory)
    channel: BackendChannel | None = None
    rings: list[LeftRing] = field(default_factory=list)
    calls: dict[int, EventFd] = field(default_factory=dict)
    errs: dict[int, EventFd] = field(default_factory=dict)
    pending: Pending | None = None


@dataclass(frozen=True, slots=True)
class Parts:
    """What Keeper writes down of a connection; memory and channel may be replaced meanwhile.

    name: the name of the connection's socket in the store. peer_connected: see
    connection.serve_front_end().
    """

    name: str
    transport: Transport
    session: Session
    rings: RingSet
    memory: Callable[[], GuestMemory]
    channel: Callable[[], BackendChannel | None]
    peer_connected: bool

"""A vhost-user front end and a guest with a balloon driver, for tests, demo and benchmarks.

It imports only `protocol`, nothing of the daemon, so that both sides read the specification
on their own. From the bottom: `events` and `memory` (real eventfds, real shared memory),
`ring` (a virtqueue's driver side), `wire` and `connection` (messages), `front_end` (QEMU's
sequences of messages), `allocator` and `driver` (what Linux does), `guest` (the whole).
"""

from __future__ import annotations

from vhost_balloon.simulator.allocator import GuestOutOfMemory, PageAllocator
from vhost_balloon.simulator.connection import Connection, Refused, UnexpectedReply
from vhost_balloon.simulator.driver import BalloonDriver
from vhost_balloon.simulator.events import EventFd
from vhost_balloon.simulator.front_end import FrontEnd
from vhost_balloon.simulator.guest import SimulatedGuest, running_guest
from vhost_balloon.simulator.memory import GuestRam, RamRegion, create_memfd
from vhost_balloon.simulator.options import DriverOptions, Numbering, queue_indexes
from vhost_balloon.simulator.ring import DriverRing, RingFull, Used
from vhost_balloon.simulator.wire import BackEndGone, Message

__all__ = [
    "BackEndGone",
    "BalloonDriver",
    "Connection",
    "DriverOptions",
    "DriverRing",
    "EventFd",
    "FrontEnd",
    "GuestOutOfMemory",
    "GuestRam",
    "Message",
    "Numbering",
    "PageAllocator",
    "RamRegion",
    "Refused",
    "RingFull",
    "SimulatedGuest",
    "UnexpectedReply",
    "Used",
    "create_memfd",
    "queue_indexes",
    "running_guest",
]

"""What can go wrong outside this program, and how far each kind of damage reaches.

    VhostBalloonError
    |-- FrontEndError      the front end misbehaved: its request is refused by a non-zero ack
    |   `-- StreamError    ... and its stream cannot be parsed any more: its connection ends
    |-- RingError          the guest misbehaved on a ring: that ring stops
    |-- OperatorError      the operator's mistake: one line on stderr, exit status 2
    `-- CommandError       a control command failed: an error reply

Any other exception is a bug in this program, and is loud.
"""

from __future__ import annotations

import enum


class VhostBalloonError(Exception):
    """Base of the four kinds."""


class StateError(Exception):
    """What a process before this one left of a VM cannot be used; nobody is to blame for it, and
    the VM is served without (vhost_balloon.front_end.inert)."""


class FrontEndError(VhostBalloonError):
    """A request that is refused; the text says what was wrong with it."""


class StreamError(FrontEndError):
    """Bytes that are no vhost-user stream, or end inside a message."""


class RingErrorReason(enum.Enum):
    """Why a ring was stopped; the values are the metric's label."""

    AVAILABLE_INDEX = "available-index"
    HEAD = "head"
    NEXT = "next"
    LOOP = "loop"
    INDIRECT = "indirect"
    BUFFER = "buffer"
    MEMORY = "memory"


class RingError(VhostBalloonError):
    """A ring whose structure is broken (virtio specification, "Split Virtqueues")."""

    def __init__(self, reason: RingErrorReason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class OperatorError(VhostBalloonError):
    """A mistake in options or in the host's set-up that the operator can mend."""


class CommandError(VhostBalloonError):
    """A control command that failed; error_class is one of QMP's error classes."""

    def __init__(self, text: str, error_class: str = "GenericError") -> None:
        super().__init__(text)
        self.error_class = error_class

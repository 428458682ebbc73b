"""Errors caused outside this program, and how far each reaches.

    VhostBalloonError
    |-- FrontEndError      the front end misbehaved: its request is refused with a non-zero ack
    |   `-- StreamError    ... and its stream can no longer be parsed: its connection ends
    |-- RingError          the guest misbehaved on a ring: that ring stops
    |-- OperatorError      the operator made a mistake: one line on stderr, exit status 2
    `-- CommandError       a control command failed: an error reply

StateError stands apart: what the previous process left cannot be used, which ends nothing. Any
other exception is a bug in this program, and is loud.
"""

from __future__ import annotations

import enum


class VhostBalloonError(Exception):
    """Base of the four kinds."""


class StateError(Exception):
    """The state that the previous process left cannot be used; the VM is served without it
    (front_end/inert.py)."""


class FrontEndError(VhostBalloonError):
    """A refused request; the text gives the reason."""


class StreamError(FrontEndError):
    """Bytes that are not a vhost-user stream, or end inside a message."""


class RingErrorReason(enum.Enum):
    """Why a ring was stopped; values of the metric's label."""

    AVAILABLE_INDEX = "available-index"
    HEAD = "head"
    NEXT = "next"
    LOOP = "loop"
    INDIRECT = "indirect"
    BUFFER = "buffer"
    MEMORY = "memory"


class RingError(VhostBalloonError):
    """A ring with a broken structure (virtio specification, "Split Virtqueues")."""

    def __init__(self, reason: RingErrorReason, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class OperatorError(VhostBalloonError):
    """A mistake in options or in the host's set-up that the operator can correct."""


class CommandError(VhostBalloonError):
    """A failed control command; error_class is one of QMP's error classes."""

    def __init__(self, text: str, error_class: str = "GenericError") -> None:
        super().__init__(text)
        self.error_class = error_class

"""The demo's measurements, and what they say about freed memory. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

_CAME_BACK: Final = 0.95  # share of the freed memory that counts as all of it


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement, in bytes.

    Attributes:
        time: seconds since the start.
        in_use: the guest's own figure of the memory that it uses.
        resident: the memory that the host spends on the guest (st_blocks).
        balloon: the balloon's size.
        reported: free pages that the guest has reported so far.
        freed: memory returned to the host so far, as measured by the daemon.
    """

    time: float
    in_use: int
    resident: int
    balloon: int = 0
    reported: int = 0
    freed: int = 0


@dataclass(frozen=True, slots=True)
class CameBack:
    """The host got this share of the released bytes back within these seconds."""

    released: int
    share: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Mark:
    """The start of a part of the play: its time, its name (one short word) and a description."""

    time: float
    name: str
    text: str


@dataclass(slots=True)
class History:
    """The contents of a picture.

    Attributes:
        memory: the guest's memory in bytes.
        duration: the initial length of the time axis in seconds.
    """

    title: str
    memory: int
    duration: float
    samples: list[Sample] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


def came_back(history: History, mark_name: str) -> CameBack:
    """Return how freed memory came back to the host, from the mark to the next one.

    The released memory is the most that the host spent beyond the guest's use.
    """
    starts = [mark.time for mark in history.marks if mark.name == mark_name]
    if not starts:
        return CameBack(0, 0.0, 0.0)
    end = min((mark.time for mark in history.marks if mark.time > starts[0]), default=math.inf)
    part = [sample for sample in history.samples if starts[0] <= sample.time <= end]
    idle = [max(0, sample.resident - sample.in_use) for sample in part]
    released = max(idle, default=0)
    if not released:
        return CameBack(0, 0.0, 0.0)
    peak = idle.index(released)
    least = min(idle[peak:])
    reached = max(least, (1 - _CAME_BACK) * released)
    first = next(n for n in range(peak, len(part)) if idle[n] <= reached)
    return CameBack(released, 1 - reached / released, part[first].time - starts[0])

"""What was measured during one act, and what it says. Sizes in bytes, times in seconds. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from vhost_balloon.demo.history import Mark

ORDERS = ("relief", "silent", "reclaim", "regrow", "stuck")
"""The policy's reasons that come with an order."""


@dataclass(frozen=True, slots=True)
class GuestSample:
    """One guest. used: by its applications and kernel; cached: files in its memory; resident: what
    the host spends on it; reason: the policy's, "" without one."""

    name: str
    used: int
    cached: int
    resident: int
    target: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class HostSample:
    """All guests at a time."""

    time: float
    guests: tuple[GuestSample, ...]

    @property
    def resident(self) -> int:
        return sum(guest.resident for guest in self.guests)


@dataclass(slots=True)
class Act:
    """The contents of a picture. limit: the host's memory; reserve: what is to stay available of
    it; size: each guest's memory; duration: the length of the time axis."""

    title: str
    limit: int
    reserve: int
    size: int
    duration: float
    samples: list[HostSample] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)

    def least_available(self) -> int:
        """Below 0: the guests used more than the host has."""
        return self.limit - max((sample.resident for sample in self.samples), default=0)

    def seconds_over(self) -> float:
        """How long the guests used more than the host has."""
        return sum(
            after.time - before.time
            for before, after in pairwise(self.samples)
            if before.resident > self.limit
        )

    def most_taken(self, name: str) -> int:
        """The most that a guest was asked to give."""
        return self.size - min((guest.target for guest in self._of(name)), default=self.size)

    def target_at_end(self, name: str) -> int:
        of = self._of(name)
        return of[-1].target if of else self.size

    def orders(self, name: str) -> list[str]:
        """The reasons of the policy's orders to a guest, in the order in which they occurred."""
        reasons = dict.fromkeys(guest.reason for guest in self._of(name))
        return [reason for reason in reasons if reason in ORDERS]

    def _of(self, name: str) -> Sequence[GuestSample]:
        return [guest for sample in self.samples for guest in sample.guests if guest.name == name]

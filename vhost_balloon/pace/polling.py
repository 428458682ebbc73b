"""Adaptive polling: a front end that was just answered often has the next request immediately.

Sleeping until a descriptor is readable, and being woken, takes longer than a small request. So this
process stays awake for a moment first, as QEMU's own event loops do. All that one front end and its
guest ask for is one conversation: a driver that takes pages back makes a deflate, then QEMU reads
and writes the config space, and so on. So what follows soon is learned for each kind of request,
whoever asks next. Where nothing follows soon, no time is spent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from time import perf_counter
from typing import Final

import trio

POLL_SECONDS: Final = 250e-6
"""How long to poll before sleeping. KVM waits 200 us by default; an emulated guest takes longer."""

SOON: Final = 350e-6
"""A request that came this soon after an answer, sleep and wake-up included, was worth polling."""

_ALONE: Final = len(os.sched_getaffinity(0)) == 1
"""With a single processor, no peer can send anything while this process polls."""


class Polling:
    """Decides when to poll. Uses the real clock, even where trio's clock is mocked.

    Kinds of requests are told by anything hashable, of which there are only a few.
    """

    def __init__(self) -> None:
        self._answered_at = float("-inf")
        self._answered: Hashable = None
        self._followed_soon: set[Hashable] = set()

    def answered(self, kind: Hashable) -> None:
        """A request of this kind was answered."""
        self._answered, self._answered_at = kind, perf_counter()

    def asked(self) -> None:
        """A request was found: learn whether it came soon after the last answer."""
        if perf_counter() - self._answered_at < SOON:
            self._followed_soon.add(self._answered)
        else:
            self._followed_soon.discard(self._answered)

    async def finds(self, has_request: Callable[[], bool], looks: int = 1) -> bool:
        """Poll for the next request of the peer that was answered last, if that is worth it. Return
        whether it came.

        The requests of others end the poll: all other tasks run meanwhile, and their descriptors
        are looked at. looks: how often to look for the peer's own request between two such turns,
        which take some 4 us.
        """
        answered_at = self._answered_at
        is_worth_it = not _ALONE and self._answered in self._followed_soon
        while is_worth_it:
            await trio.lowlevel.checkpoint()
            for _ in range(looks):
                if has_request():
                    self.asked()
                    return True
            # Another task may have answered meanwhile, and polls then.
            is_worth_it = (
                self._answered_at == answered_at and perf_counter() < answered_at + POLL_SECONDS
            )
        return False

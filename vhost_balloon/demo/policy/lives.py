"""The lives of the three guests, the same in both acts. Times are in seconds at pace 1.

- reader reads files for ever, which fills all memory that it has. In the end its application
  needs memory itself.
- worker needs much memory for a while, and frees it.
- idle does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import trio

from vhost_balloon.simulator.guest import SimulatedGuest

NAMES: Final = ("reader", "worker", "idle")
READER, WORKER, IDLE = NAMES
ACT_SECONDS: Final = 30.0
_STEP: Final = 0.2

LIMIT: Final = 1.85
RESERVE: Final = 0.35
"""The host's memory and its reserve, as multiples of a guest's memory."""


async def live(
    guests: dict[str, SimulatedGuest], pace: float, mark: Callable[[str, str], None]
) -> None:
    """Play one act. mark(name, text): a part of it begins."""
    size = guests[READER].ram.size
    async with trio.open_nursery() as nursery:
        mark("files", "reader reads files; its page cache grows for ever.")
        for name, share in ((READER, 0.08), (WORKER, 0.08), (IDLE, 0.12)):
            await guests[name].touch(int(size * share))
        await guests[IDLE].read_files(int(size * 0.12))
        nursery.start_soon(_read_for_ever, guests[READER], size / 7, pace)
        await trio.sleep(9 * pace)
        mark("burst", "worker needs memory. Nothing of it is free: reader's cache has it.")
        await _grow(guests[WORKER], int(size * 0.7), 7 * pace)
        await trio.sleep(3 * pace)
        mark("freed", "worker frees it, reports its free pages, and the host has them again.")
        await guests[WORKER].free(int(size * 0.7))
        await trio.sleep(4 * pace)
        mark("need", "reader's application needs memory itself.")
        await _grow(guests[READER], int(size * 0.5), 3 * pace)
        await trio.sleep(4 * pace)
        nursery.cancel_scope.cancel()


async def _read_for_ever(guest: SimulatedGuest, rate: float, pace: float) -> None:
    """rate: bytes a second."""
    while True:
        await guest.read_files(math.ceil(rate * _STEP / pace))
        await trio.sleep(_STEP)


async def _grow(guest: SimulatedGuest, size: int, seconds: float) -> None:
    """Use more memory, evenly."""
    steps = max(1, round(seconds / _STEP))
    start = trio.current_time()
    for step in range(steps):
        await guest.touch(size // steps)
        await trio.sleep_until(start + seconds * (step + 1) / steps)

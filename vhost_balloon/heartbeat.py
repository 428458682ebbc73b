"""Knows whether this process, or its event loop, was away for too long.

A guest driver may wait a second and then use its pages again, whether they were acknowledged or
not (Windows does). So a request that was found waiting after a gap is acknowledged without being
discarded. A kick carries no time; what can be known is when this process was last awake.
"""

from __future__ import annotations

from typing import Final

import trio

HOLD_LIMIT: Final = 0.5
"""Longest time in seconds that a request is held, half of what Windows' driver waits."""
TICK: Final = 0.1


class Heartbeat:
    """Ticks while run() does."""

    def __init__(self) -> None:
        self._last = trio.current_time()
        self._gap_ended = float("-inf")

    async def run(self) -> None:
        while True:
            await trio.sleep(TICK)
            now = trio.current_time()
            if now - self._last > HOLD_LIMIT:
                self._gap_ended = now
            self._last = now

    def found_late(self, now: float) -> bool:
        """Whether what is found waiting now may have waited for longer than HOLD_LIMIT."""
        # The second case: this tick ran before the ring's task did, after the same gap.
        return now - self._last > HOLD_LIMIT or now - self._gap_ended < TICK

"""Turns: the tasks of one guest share one place in the event loop's round.

trio runs every task that is ready once in each pass. A guest with all rings full would have five
steps of work in every pass, and each other guest would wait for all five.
"""

from __future__ import annotations

import trio

from vhost_balloon.rate import STEP_BURST, STEP_RATE, Bucket


class Turn:
    """One guest's place. Its tasks call others() between two steps of work."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting = trio.lowlevel.ParkingLot()
        self._steps = Bucket(STEP_RATE, STEP_BURST)

    async def others(self) -> None:
        """End a step: all other guests go first, and this guest's other tasks in their order.

        Cannot be cancelled: a request is finished or left as it was, never ended in between.
        """
        with trio.CancelScope(shield=True):
            if self._taken:
                await self._waiting.park()
            else:
                self._taken = True
                await trio.lowlevel.checkpoint()
            delay = self._steps.take(1, trio.current_time())
            if delay:
                await trio.sleep(delay)
        # Whoever is woken here goes on in the next pass, after all who are ready by now.
        self._taken = bool(self._waiting.unpark())

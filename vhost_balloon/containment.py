"""Keeps failures in secondary services from ending the primary one, serving the VM.

A client's failure ends that client. A service's failure ends that service, which is started again.
Such a failure is a bug of ours, so it is loud: a warning with its traceback, and a counter. A
mistake of the operator's (a port in use, a missing folder) is one line without a traceback, and the
service is tried again until it works.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

import trio

from vhost_balloon.errors import OperatorError
from vhost_balloon.log.lines import Limit, logger

T = TypeVar("T", bound=trio.abc.AsyncResource)

PLACES: Final = (
    "control",
    "control-client",
    "counters",
    "events",
    "log",
    "metrics",
    "metrics-client",
    "status",
    "store",
    "upgrade",
    "wakefulness",
    "watchdog",
)
"""Where failures in a VM's daemon are contained; values of the metric's label."""

MISTAKE_PAUSE: Final = 2.0
"""Seconds between attempts while the operator has something to correct."""
FIRST_PAUSE: Final = 1.0
LAST_PAUSE: Final = 60.0
"""Seconds until a failed service is started again: doubled each time from the first to the last,
and reset after the service ran for longer than the last."""


class InternalErrors:
    """Counts contained failures by where they happened, one of places."""

    def __init__(self, places: Sequence[str] = PLACES) -> None:
        self.counts: Final = Counter(dict.fromkeys(places, 0))
        self._limits: Final = {where: Limit() for where in places}

    def record(self, where: str, error: BaseException) -> None:
        """Count a failure and log it. Clients can cause failures at will, so the number of lines is
        limited."""
        self.counts[where] += 1
        may, left_out = self._limits[where].line(time.monotonic())
        if may:
            more = f" ({left_out} more were left out)" if left_out else ""
            logger.warning("internal error in %s%s", where, more, exc_info=error)

    @contextmanager
    def contained(self, where: str) -> Iterator[None]:
        """Contain a failure of the body."""
        try:
            yield
        except* Exception as failures:
            self.record(where, lone(failures))

    async def supervise(self, where: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a service until it returns, starting it again after failures."""
        pause, said = FIRST_PAUSE, ""
        while True:
            began = trio.current_time()
            try:
                return await run()
            except* OperatorError as mistakes:
                text = str(lone(mistakes))
                if text != said:
                    logger.warning("%s; trying again until it works", text)
                said, wait = text, MISTAKE_PAUSE
            except* Exception as failures:
                if trio.current_time() - began > LAST_PAUSE:
                    pause = FIRST_PAUSE
                self.record(where, lone(failures))
                wait, pause = pause, min(2 * pause, LAST_PAUSE)
            await trio.sleep(wait)


class KeptOpen(trio.abc.Listener[T]):
    """A listener that stays open when its server fails, for the next attempt."""

    def __init__(self, listener: trio.abc.Listener[T]) -> None:
        self._listener = listener

    async def accept(self) -> T:
        return await self._listener.accept()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def lone(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The only exception in nested groups, or the innermost group of several."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found

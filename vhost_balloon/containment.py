"""Keeps what goes wrong in something secondary from ending what is primary: serving the VM.

A client's failure ends that client. A service's failure ends that service, which is started again.
Such a failure is a bug of ours, so it is loud: a warning with its traceback, and a counter. What
the operator has to mend (a port that is taken, a folder that is missing) is one line without a
traceback, and is tried again until it works.
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
"""Where a failure of a VM's daemon is contained; the values are the metric's label."""

MISTAKE_PAUSE: Final = 2.0
"""Seconds until what the operator has to mend is tried again."""
FIRST_PAUSE: Final = 1.0
LAST_PAUSE: Final = 60.0
"""Seconds until a service that failed is started again; the pause doubles from the first to the
last, and is the first one again after a service ran for longer than the last."""


class InternalErrors:
    """Contained failures, counted by where they happened: one of places."""

    def __init__(self, places: Sequence[str] = PLACES) -> None:
        self.counts: Final = Counter(dict.fromkeys(places, 0))
        self._limits: Final = {where: Limit() for where in places}

    def record(self, where: str, error: BaseException) -> None:
        """Count a failure and log it. Clients can cause failures as often
        as they like, so the lines are limited in number."""
        self.counts[where] += 1
        may, left_out = self._limits[where].line(time.monotonic())
        if may:
            more = f" ({left_out} more were left out)" if left_out else ""
            logger.warning("internal error in %s%s", where, more, exc_info=error)

    @contextmanager
    def contained(self, where: str) -> Iterator[None]:
        """Have a failure inside end here."""
        try:
            yield
        except* Exception as failures:
            self.record(where, lone(failures))

    async def supervise(self, where: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a service until it returns, as often as that takes."""
        pause, said = FIRST_PAUSE, ""
        while True:
            began = trio.current_time()
            try:
                return await run()
            except* OperatorError as mistakes:
                text = str(lone(mistakes))
                if text != said:
                    logger.warning("%s; it is tried again until it works", text)
                said, wait = text, MISTAKE_PAUSE
            except* Exception as failures:
                if trio.current_time() - began > LAST_PAUSE:
                    pause = FIRST_PAUSE
                self.record(where, lone(failures))
                wait, pause = pause, min(2 * pause, LAST_PAUSE)
            await trio.sleep(wait)


class KeptOpen(trio.abc.Listener[T]):
    """A listener that its server does not close when it fails: the next one goes on with it."""

    def __init__(self, listener: trio.abc.Listener[T]) -> None:
        self._listener = listener

    async def accept(self) -> T:
        return await self._listener.accept()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def lone(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception of nested groups, or the group if there are several."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup) and len(found.exceptions) == 1:
        found = found.exceptions[0]
    return found

"""Sends commands to control sockets with a time limit: to many at once, or to one in turn."""

from __future__ import annotations

import select
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Final

from vhost_balloon.ctl.errors import CtlError, ServerError, Silent
from vhost_balloon.ctl.link import MAX_ANSWER, Link

ANSWER_SECONDS: Final = 10.0
"""Time limit of an answer. A daemon answers in milliseconds, unless it is stopped or hangs."""

RETRY_SECONDS: Final = 0.02
"""Between attempts to connect while the server's backlog is full: no event signals a free place."""


class Round:
    """Advances several links until each has its answers or a problem."""

    def __init__(self, links: Iterable[Link], seconds: float) -> None:
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._epoll = select.epoll()
        self._waiting: dict[int, Link] = {}  # by descriptor
        self._unconnected: list[Link] = []
        for link in links:
            self._advance(link)

    def fileno(self) -> int:
        """Return a descriptor that is readable when step() has something to do."""
        return self._epoll.fileno()

    def patience(self) -> float:
        """Return the seconds after which to call step() even if the descriptor is not readable."""
        left = max(self._deadline - time.monotonic(), 0)
        return min(left, RETRY_SECONDS) if self._unconnected else left

    def step(self, seconds: float = float("inf")) -> bool:
        """Wait at most that long for data and process it. Return whether the round is over."""
        # Process pending data before declaring a daemon silent: this tool may have been stopped.
        is_last = time.monotonic() >= self._deadline
        wait = min(seconds, self.patience())
        links, self._unconnected = self._unconnected, []
        if self._waiting or links:
            for number, _ in self._epoll.poll(wait):
                self._epoll.unregister(number)
                links.append(self._waiting.pop(number))
        for link in links:
            self._advance(link)
        if is_last:
            for link in (*self._waiting.values(), *self._unconnected):
                link.fail(Silent(f"no answer within {self._seconds:g} s"))
        elif self._waiting or self._unconnected:
            return False
        self._epoll.close()
        return True

    def run(self) -> None:
        """Wait until the round is over."""
        while not self.step():
            pass

    def _advance(self, link: Link) -> None:
        link.advance()
        if link.waits and link.fileno() == -1:
            self._unconnected.append(link)
        elif link.waits:
            self._epoll.register(link.fileno(), link.interest)
            self._waiting[link.fileno()] = link


class Client:
    """A connection to one daemon. A context manager that closes it. Methods raise CtlError."""

    def __init__(
        self,
        path: str,
        name: str | None = None,
        seconds: float = ANSWER_SECONDS,
        *,
        most: int = MAX_ANSWER,
    ) -> None:
        """name: the VM's name, which overrides the daemon's own; None: use the daemon's. most:
        bytes that may come until a command is answered."""
        self.path = path
        self.name = name
        self.seconds = seconds
        self._link = Link(path, most)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._link.close()

    def execute(
        self, command: str, arguments: Mapping[str, Any] | None = None, patience: float = 0
    ) -> Any:
        """Return the "return" value of a command.

        patience: seconds that the daemon may take beyond the usual limit.

        Raises ServerError if the daemon refuses.
        """
        self._link.ask(command, arguments)
        return self._wait(self.seconds + patience)[-1]

    def wait_end(self, seconds: float) -> bool:
        """Return whether the daemon closes this connection within that time."""
        self._link.expect_end()
        try:
            self._wait(seconds)
        except Silent:
            return False
        except CtlError:
            pass
        return True

    def _wait(self, seconds: float) -> list[Any]:
        Round([self._link], seconds).run()
        try:
            return self._link.take()
        except ServerError:
            raise
        except CtlError as error:
            raise type(error)(f"{self.path}: {error}") from None

"""Asking control sockets: many at once, or one daemon question by question; with time limits."""

from __future__ import annotations

import select
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Final

from vhost_balloon.ctl.errors import CtlError, ServerError, Silent
from vhost_balloon.ctl.link import Link

ANSWER_SECONDS: Final = 10.0
"""The daemon answers in milliseconds; one that takes this long is stopped or hangs."""

RETRY_SECONDS: Final = 0.02
"""Between two tries to connect where the server's backlog is full: nothing tells when it is not."""


class Round:
    """Has several links go on until each has its answers or a problem; call step() until then."""

    def __init__(self, links: Iterable[Link], seconds: float) -> None:
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._epoll = select.epoll()
        self._waiting: dict[int, Link] = {}  # by descriptor
        self._unconnected: list[Link] = []
        for link in links:
            self._go_on(link)

    def fileno(self) -> int:
        """A descriptor that is readable when step() has something to do."""
        return self._epoll.fileno()

    def patience(self) -> float:
        """Seconds after which step() has something to do in any case."""
        left = max(self._deadline - time.monotonic(), 0)
        return min(left, RETRY_SECONDS) if self._unconnected else left

    def step(self, seconds: float = float("inf")) -> bool:
        """Wait so long at most for something to come; whether the round is over."""
        # Read what has come before anyone is said to be silent: this tool may have been stopped.
        is_last = time.monotonic() >= self._deadline
        wait = min(seconds, self.patience())
        links, self._unconnected = self._unconnected, []
        if self._waiting or links:
            for number, _ in self._epoll.poll(wait):
                self._epoll.unregister(number)
                links.append(self._waiting.pop(number))
        for link in links:
            self._go_on(link)
        if is_last:
            for link in (*self._waiting.values(), *self._unconnected):
                link.fail(Silent(f"no answer within {self._seconds:g} s"))
        elif self._waiting or self._unconnected:
            return False
        self._epoll.close()
        return True

    def run(self) -> None:
        """Wait until it is over."""
        while not self.step():
            pass

    def _go_on(self, link: Link) -> None:
        link.go_on()
        if link.waits and link.fileno() == -1:
            self._unconnected.append(link)
        elif link.waits:
            self._epoll.register(link.fileno(), link.interest)
            self._waiting[link.fileno()] = link


class Client:
    """A connection to one daemon; a context manager, which closes it. Methods raise CtlError."""

    def __init__(self, path: str, name: str | None = None, seconds: float = ANSWER_SECONDS) -> None:
        """name: what its VM is called, whatever the daemon says; None: as the daemon says."""
        self.path = path
        self.name = name
        self.seconds = seconds
        self._link = Link(path)

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
        """The "return" of a command, which the daemon may take patience seconds longer for.

        Raises ServerError if it refuses.
        """
        self._link.ask(command, arguments)
        return self._wait(self.seconds + patience)[-1]

    def wait_end(self, seconds: float) -> bool:
        """Whether the daemon closes this connection within that time."""
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

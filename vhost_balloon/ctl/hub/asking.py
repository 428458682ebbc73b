"""Asks the hub over its control socket: once, again and again, or beside the VMs."""

from __future__ import annotations

import argparse
import select
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from vhost_balloon.ctl.client import ANSWER_SECONDS, Client, Round
from vhost_balloon.ctl.errors import Absent, CtlError, ServerError
from vhost_balloon.ctl.hub.model import OFF, Policy, read_policy
from vhost_balloon.ctl.link import Link
from vhost_balloon.printable import printable

MAX_ANSWER: Final = 16 << 20
"""Bytes. The hub tells some 1.5 KiB of each VM, and serves at most 4096."""

GRACE: Final = 0.1
"""Seconds for which `watch` waits for the hub once all VMs have answered. A hub that was late is
not waited for again until it has answered."""


def execute(
    options: argparse.Namespace,
    command: str,
    arguments: Mapping[str, Any] | None = None,
    seconds: float = ANSWER_SECONDS,
) -> Any:
    """Return the hub's answer to a command within that time. Raises CtlError."""
    try:
        with Client(options.hub_socket, seconds=seconds, most=MAX_ANSWER) as client:
            return client.execute(command, arguments)
    except Absent:
        raise absent(options.hub_socket) from None


def absent(path: str) -> CtlError:
    return CtlError(
        f"no hub listens at {printable(path)}: `systemctl start vhost-balloon-hub` starts it, "
        "and the policy with it"
    )


def _has_data(query: Round) -> bool:
    return bool(select.select([query.fileno()], [], [], 0)[0])


class HubPoller:
    """Asks for the policy again and again: ask(), then policy() once that round is over.

    Keeps the connection open. A context manager that closes it.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._link: Link | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._link is not None:
            self._link.close()

    def ask(self) -> Round:
        if self._link is not None and self._link.problem is None:
            self._link.advance()  # it may have been closed
        if self._link is None or self._link.problem is not None:
            self._link = Link(self._path, MAX_ANSWER)
        self._link.ask("query-policy")
        return Round([self._link], ANSWER_SECONDS)

    def policy(self) -> Policy:
        """Return the answer of the last round. Raises CtlError."""
        assert self._link is not None
        try:
            return read_policy(self._link.take()[-1])
        except Absent:
            raise absent(self._path) from None
        except ServerError:
            raise
        except CtlError as error:
            raise CtlError(f"{self._path}: {error}") from None


class Beside:
    """Asks the hub while VMs are asked: a hub that is slow, silent or absent delays nothing.

    A context manager.
    """

    def __init__(self, path: str | None) -> None:
        """path: None for no hub."""
        self._poller = None if path is None else HubPoller(path)
        self._round: Round | None = None
        self._is_late = False
        self._last: Policy | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._poller is not None:
            self._poller.__exit__(kind, error, trace)

    def ask(self) -> None:
        """Ask, unless there is a question that is not answered yet."""
        if self._poller is not None and self._round is None:
            self._round = self._poller.ask()

    def take(self) -> Policy | None:
        """Return the policy if there is one and it moves memory.

        While an answer is late, that is the last known one.
        """
        if self._poller is None or self._round is None:
            return None
        deadline = time.monotonic() + (0 if self._is_late else GRACE)
        is_over = self._round.step(0)
        while not is_over and (_has_data(self._round) or time.monotonic() < deadline):
            is_over = self._round.step(max(deadline - time.monotonic(), 0))
        self._is_late = not is_over
        if is_over:
            self._round = None
            try:
                policy = self._poller.policy()
                moves_nothing = policy.mode == OFF and policy.host is None
                self._last = None if moves_nothing else policy
            except CtlError:
                self._last = None
        return self._last

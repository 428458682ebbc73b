"""Waiting for conditions that no event announces."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar


def wait_until(
    condition: Callable[[], bool],
    seconds: float,
    failure: Callable[[], Exception] | None = None,
    *,
    pause: float = 0.1,
) -> float:
    """Poll a condition until it holds; return the seconds it took.

    Raises:
        AssertionError: it did not hold in time; with failure(), the error that it returns.
    """
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise failure() if failure else AssertionError(f"not within {seconds} s")
        time.sleep(pause)
    return time.monotonic() - started


T = TypeVar("T")


def connected(
    connect: Callable[[], T],
    seconds: float,
    failure: Callable[[], Exception],
    check: Callable[[], None] = lambda: None,
) -> T:
    """Connect to a socket on which somebody is about to listen; check() runs before each attempt.

    Raises:
        Exception: the one from failure(), if nobody listens in time.
    """
    found: list[T] = []

    def connects() -> bool:
        check()
        try:
            found.append(connect())
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    wait_until(connects, seconds, failure, pause=0.02)
    return found[0]


def unix_connection(path: Path) -> socket.socket:
    """A socket that is connected to the one at path."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(str(path))
    except BaseException:
        connection.close()
        raise
    return connection

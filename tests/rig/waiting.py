"""Waiting for conditions that no event announces."""

from __future__ import annotations

import time
from collections.abc import Callable


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

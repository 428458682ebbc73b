"""Reads configuration files for a limited time: their file system may hang."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import trio

from vhost_balloon.errors import OperatorError
from vhost_balloon.threads import Thread

T = TypeVar("T")

PATIENCE: Final = 5.0
"""Seconds for all files together."""


async def read_in_time(thread: Thread, read: Callable[[], T], files: Sequence[Path]) -> T:
    """What read() returns, which reads these files in the thread.

    Raises what read() does, and OperatorError if it takes longer than PATIENCE.
    """
    try:
        return await thread.run(read, PATIENCE)
    except trio.TooSlowError:
        names = ", ".join(map(str, files))
        text = f"cannot read {names} within {PATIENCE:g} s: the file system hangs"
        raise OperatorError(text) from None

"""Plays a running guest processor: unmapping its pages interrupts it."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from tests.benchmarks.works import PAGE


class BusyProcessor:
    """This process with a guest's memory in its page tables. A context manager.

    It counts as running while this process runs, as when it polls for answers.
    """

    def __init__(self, fd: int, start: int, end: int) -> None:
        """Map start to end of a memory file."""
        self._map = mmap.mmap(fd, end - start, offset=start)

    def __enter__(self) -> Self:
        with memoryview(self._map) as view:
            view[::PAGE] = bytes(len(view[::PAGE]))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._map.close()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Keep this process running while its caller waits."""
        ended = threading.Event()
        thread = threading.Thread(target=_spin, args=[ended])
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _spin(ended: threading.Event) -> None:
    while not ended.is_set():
        pass

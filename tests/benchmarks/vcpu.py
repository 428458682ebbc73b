"""Plays a running guest processor: unmapping its pages interrupts it."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager

from tests.benchmarks.works import PAGE


@contextmanager
def busy_processor(fd: int, start: int, end: int) -> Iterator[None]:
    """Have start to end of a memory file in the page tables of this process.

    The processor runs while this process does, as when it polls for answers.
    """
    with mmap.mmap(fd, end - start, offset=start) as memory:
        with memoryview(memory) as view:
            view[::PAGE] = bytes(len(view[::PAGE]))
        yield

"""Helpers of the shelf's tests: marked files, a successor process's shelf, children."""

from __future__ import annotations

import gc
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

from tests.support.end_to_end import open_fds
from tests.support.helpers import memfd
from vhost_balloon.fds import OwnedFd
from vhost_balloon.store import shelf as module
from vhost_balloon.store.shelf import (
    BUFFER,
    Shelf,
    shelf_name,
)


def marked(mark: int) -> OwnedFd:
    """A file that is known by its size."""
    return memfd(mark)


def mark(fd: OwnedFd) -> int:
    return os.fstat(fd.fileno()).st_size


def names(fds: list[OwnedFd]) -> list[str]:
    found = [shelf_name(fd) for fd in fds]
    assert all(found)
    return [name or "" for name in found]


def successor(shelf: Shelf, in_use: int | None = None) -> Shelf:
    """The shelf as the process after this one finds it; this one's descriptors are its own."""
    ends = [OwnedFd(os.dup(end.fileno())) for end in shelf.ends]
    return Shelf(ends, shelf.in_use if in_use is None else in_use)


@contextmanager
def shelves(buffer: int = BUFFER) -> Iterator[Shelf]:
    """A new shelf; buffer is what its pairs hold (bytes)."""
    with mock.patch.object(module, "BUFFER", buffer):
        shelf = Shelf.create()
        try:
            yield shelf
        finally:
            shelf.close()


def packets(shelf: Shelf, pair: int) -> list[tuple[int, int]]:
    """Number and bits of what lies in a pair."""
    return [(number, bits) for number, bits, _ in shelf._pairs[pair].look()]


def started(run: Callable[[], None]) -> int:
    """Run in a child; its number."""
    pid = os.fork()
    if pid == 0:
        gc.disable()  # it would touch, and so copy, all memory
        code = 99
        try:
            run()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """A child's exit status, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def open_now() -> Counter[str]:
    """Count open descriptors after a garbage collection."""
    gc.collect()
    return open_fds()

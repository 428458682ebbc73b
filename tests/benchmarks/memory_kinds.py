"""The kinds of shared memory that a guest can have, from small pages to huge ones."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from tests.rig.memory import MiB
from tests.support.huge_pages import HugePages, shmem_enabled
from vhost_balloon.simulator.memory import create_memfd

HUGE: Final = 2 * MiB


@dataclass(frozen=True)
class Kind:
    """A kind of memory.

    Attributes:
        make: for a size in bytes, sets the host up and yields a file, which the caller owns. Raises
            OSError where the host cannot.
        advised: huge pages are only for mappings that ask with MADV_HUGEPAGE.
        options: of the daemon.
    """

    name: str
    make: Callable[[int], AbstractContextManager[int]]
    advised: bool = False
    options: tuple[str, ...] = ()


@contextmanager
def _memfd(word: str, size: int) -> Iterator[int]:
    """A memfd, as of QEMU's memory-backend-memfd, with shmem_enabled set to word."""
    with shmem_enabled(word):
        yield create_memfd(size)


@contextmanager
def _tmpfs(word: str, size: int) -> Iterator[int]:
    """A file, as of QEMU's memory-backend-file, on a tmpfs with huge=word that no one else sees."""
    with tempfile.TemporaryDirectory() as folder:
        mount = f"mount -t tmpfs -o huge={word},size={2 * size} none {folder}"
        with subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", f"{mount} && echo mounted && read word"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as holder:
            assert holder.stdout is not None
            if not holder.stdout.readline():
                raise OSError(f"no tmpfs with huge={word}")
            path = f"/proc/{holder.pid}/root{folder}/ram"
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.ftruncate(fd, size)
            yield fd


@contextmanager
def _hugetlb(size: int) -> Iterator[int]:
    """A memfd of huge pages from a pool that is large enough for it."""
    with HugePages(size // HUGE):
        yield create_memfd(size, hugetlb=True)


KINDS: Final = (
    Kind("memfd, 4 KiB pages", partial(_memfd, "never")),
    Kind("memfd, advise", partial(_memfd, "advise"), advised=True),
    Kind("memfd, within_size", partial(_memfd, "within_size")),
    Kind("memfd, always", partial(_memfd, "always")),
    Kind("tmpfs, 4 KiB pages", partial(_tmpfs, "never")),
    Kind("tmpfs, advise", partial(_tmpfs, "advise"), advised=True),
    Kind("tmpfs, within_size", partial(_tmpfs, "within_size")),
    Kind("tmpfs, always", partial(_tmpfs, "always")),
    Kind("hugetlb, 2 MiB", _hugetlb, options=("--discard-hugetlb",)),
)

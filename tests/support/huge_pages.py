"""The host's settings for huge pages, changed for as long as a test or a benchmark takes."""

from __future__ import annotations

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final, TextIO

import pytest

from protocol.vhost_user_payloads import Region
from tests.rig.fixtures import required
from tests.support.helpers import MIB
from vhost_balloon.simulator.memory import GuestRam, RamRegion, create_memfd


def need_root(what: str) -> None:
    """Skip the test, saying so, where an ordinary user runs it and may: never in CI."""
    if os.geteuid() != 0 and not required():
        pytest.skip(f"{what} NOT TESTED: that takes root")


@contextmanager
def alone_with(setting: Path) -> Iterator[TextIO]:
    """Lock a setting of the host, and open it; others that change or need it wait meanwhile."""
    with setting.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


SHMEM_ENABLED: Final = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
"""Whether memfds get transparent huge pages: the chosen word is in brackets."""


@contextmanager
def shmem_enabled(word: str) -> Iterator[None]:
    """Set SHMEM_ENABLED, which is the host's; others that do so wait meanwhile.

    A shell puts the old word back when its input ends, so also when this process is killed. It
    shares the lock, so that nobody takes the new word for the old one.

    Raises:
        OSError: this process may not, or the kernel does not know the word.
    """
    restoring = 'cat >/dev/null; echo "$0" >"$1"'
    with alone_with(SHMEM_ENABLED) as lock:
        old = lock.read().split("[")[1].split("]")[0]
        command = ["sh", "-c", restoring, old, str(SHMEM_ENABLED)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, pass_fds=[lock.fileno()], start_new_session=True
        ):
            SHMEM_ENABLED.write_text(word)
            yield


class HugePages(AbstractContextManager["HugePages"]):
    """The host's pool of huge pages, larger by count for the time of a test.

    Other test runs on this host wait meanwhile. Raises OSError where the pool cannot grow.
    """

    POOL: Final = Path("/proc/sys/vm/nr_hugepages")
    FOLDER: Final = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")

    def __init__(self, count: int) -> None:
        with ExitStack() as undo:
            old = int(undo.enter_context(alone_with(self.POOL)).read())
            undo.callback(self.POOL.write_text, str(old))
            self.POOL.write_text(str(old + count))
            if int(self.POOL.read_text()) < old + count:
                raise OSError(f"the host has no {count} huge pages to spare")
            self._undo = undo.pop_all()

    def free(self) -> int:
        """Pages that nobody uses, reserved or not."""
        return int((self.FOLDER / "free_hugepages").read_text())

    def ram(self, size: int, *, reserve: bool = True) -> GuestRam:
        return GuestRam.create(size, hugetlb=True, reserve=reserve)

    def exhaust(self) -> None:
        """Use all pages that are free and that nobody has reserved."""
        size = (self.free() - int((self.FOLDER / "resv_hugepages").read_text())) * 2 * MIB
        region = RamRegion(create_memfd(size, hugetlb=True), Region(0, size, 0, 0))
        self._undo.callback(region.close)
        os.posix_fallocate(region.fd, 0, size)

    def __exit__(self, *error: object) -> None:
        self._undo.close()

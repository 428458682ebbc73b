"""One policy a host: an exclusive lock on a file in each folder of control sockets.

Two policies would add up to more than either wants. flock(2) works on a descriptor that is open for
reading, which is all that the hub may have there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vhost_balloon.fds import OwnedFd

FILE: Final = "policy.lock"
MODE: Final = 0o640
LOCKS: Final = Path("/proc/locks")
MAX_LOCKS: Final = 1 << 20
"""Bytes that are read of it, some 60 a lock."""

_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class PolicyLock:
    """Takes the locks of all folders, or none. The caller releases it."""

    def __init__(self, folders: Sequence[Path], locks: Path = LOCKS) -> None:
        """locks: the kernel's list, to name a holder from."""
        self._paths: Final = [folder / FILE for folder in folders]
        self._locks: Final = locks
        self._held: dict[Path, OwnedFd] = {}

    def try_take(self) -> str | None:
        """Take the locks, or check that they are still those of the files. Never waits.

        Returns None if this process has them. Otherwise returns why not, in one line, and has none.
        """
        try:
            for path in self._paths:
                problem = self._take(path)
                if problem is not None:
                    self.release()
                    return problem
        except OSError as error:
            self.release()
            return f"cannot lock {path}: {error.strerror}{_remedy(error)}"
        return None

    def release(self) -> None:
        while self._held:
            self._held.popitem()[1].close()

    def _take(self, path: Path) -> str | None:
        """Raises OSError."""
        held = self._held.get(path)
        if held is not None and _is_at(held, path):
            return None
        fd = _open(path)
        info = os.fstat(fd.fileno())
        if not stat.S_ISREG(info.st_mode):
            return f"cannot lock {path}: it is not a regular file"
        try:
            fcntl.flock(fd.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return f"{_holder(self._locks, info)} decides on this host: it has locked {path}"
        if held is not None:
            held.close()
        self._held[path] = fd
        return None


def _open(path: Path) -> OwnedFd:
    """The file, which is created if it is missing. Raises OSError."""
    try:
        return OwnedFd(os.open(path, _FLAGS))
    except FileNotFoundError:
        return OwnedFd(os.open(path, _FLAGS | os.O_CREAT, MODE))


def _is_at(fd: OwnedFd, path: Path) -> bool:
    """Whether it is the file at path: another process would lock the one that is there."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd.fileno()))


def _remedy(error: OSError) -> str:
    if isinstance(error, FileNotFoundError | PermissionError) or error.errno == errno.EROFS:
        return "; systemd-tmpfiles --create makes it, as root"
    return ""


def _holder(locks: Path, info: os.stat_result) -> str:
    """Who has locked a file, from lines such as
    "1: FLOCK  ADVISORY  WRITE 7554 fe:00:16039944 0 EOF" (proc(5)). A sandbox may hide them."""
    file = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    try:
        with locks.open() as lines:
            text = lines.read(MAX_LOCKS)
    except (OSError, ValueError):
        text = ""
    for line in text.splitlines():
        words = line.split()
        if words[1:2] == ["FLOCK"] and words[5:6] == [file]:
            return f"another hub (process {words[4]})"
    return "another hub"

"""One policy a host: an exclusive lock on a file in each folder of control sockets.

Two policies would add up to more than either wants. flock(2) works on a descriptor that is open for
reading, which is all that the hub may have there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import trio

from vhost_balloon.fds import OwnedFd
from vhost_balloon.threads import Thread

FILE: Final = "policy.lock"
MODE: Final = 0o640
LOCKS: Final = Path("/proc/locks")
MAX_LOCKS: Final = 1 << 20
"""Bytes that are read of it, some 60 a lock."""

REMEDY: Final = "; systemd-tmpfiles --create makes it, as root"
HANGS: Final = "cannot lock the folders of control sockets: their file system hangs"

_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class PolicyLock:
    """Takes the locks of all folders that are there, or none. The caller releases it."""

    def __init__(self, folders: Sequence[Path], locks: Path = LOCKS) -> None:
        """locks: the kernel's list, to name a holder from."""
        self._paths: Final = [folder / FILE for folder in folders]
        self._locks: Final = locks
        self._held: Mapping[Path, OwnedFd] = {}
        self._thread: Final = Thread()
        self._busy: Final = trio.Lock()
        self.is_partial = False
        """A folder was not there to be locked. It may have come since, with VMs."""

    async def try_take(self) -> str | None:
        """Take the locks, or check that they are still those of the files.

        Returns None if this process has them. Otherwise returns why not, in one line, and has none.
        """
        async with self._busy:
            call = partial(_take_all, self._paths, self._held, self._locks)
            try:
                taken = await self._thread.run(call)
            except trio.TooSlowError:
                # What is held is locked as before: VMs need relief most while a host is slow.
                return None if self._held and not self.is_partial else HANGS
            self._held, self.is_partial = taken.held, taken.is_partial
            return taken.problem

    def release(self) -> None:
        self._held = {}  # closed by their last reference, as a thread may be looking at them


@dataclass(frozen=True, slots=True)
class _Taken:
    """held: the locked files; none if there is a problem."""

    held: Mapping[Path, OwnedFd] = field(default_factory=dict)
    is_partial: bool = False
    problem: str | None = None


class _Refused(Exception):
    """The file cannot be locked; the text says why, in one line."""


def _take_all(paths: Sequence[Path], held: Mapping[Path, OwnedFd], locks: Path) -> _Taken:
    """Called in a thread, so it leaves held as it is."""
    taken: dict[Path, OwnedFd] = {}
    for path in paths:
        before = held.get(path)
        try:
            if before is not None and _is_at(before, path):
                taken[path] = before
            else:
                taken[path] = _take(path, [*held.values(), *taken.values()], locks)
        except FileNotFoundError:
            continue  # without a folder there are no VMs
        except _Refused as refusal:
            return _Taken(problem=str(refusal))
        except OSError as error:
            return _Taken(problem=f"cannot lock {path}: {error.strerror}{_remedy(error)}")
    if not taken:
        folders = ", ".join(str(path.parent) for path in paths)
        return _Taken(problem=f"there is no folder of control sockets ({folders}){REMEDY}")
    return _Taken(taken, is_partial=len(taken) < len(paths))


def _take(path: Path, locked: Sequence[OwnedFd], locks: Path) -> OwnedFd:
    """The locked file at path. locked: those of this process.

    Raises OSError or _Refused.
    """
    fd = _open(path)
    info = os.fstat(fd.fileno())
    if not stat.S_ISREG(info.st_mode):
        raise _Refused(f"cannot lock {path}: it is not a regular file")
    for same in locked:
        if os.path.samestat(info, os.fstat(same.fileno())):
            return same  # two paths lead to one folder
    try:
        fcntl.flock(fd.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(locks, info)
        raise _Refused(f"{holder} decides on this host: it has locked {path}") from None
    return fd


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
    return REMEDY if isinstance(error, PermissionError) or error.errno == errno.EROFS else ""


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

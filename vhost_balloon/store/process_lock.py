"""The lock that keeps two processes from serving one VM.

If systemd cannot kill a process (in uninterruptible sleep, for example inside a fallocate() that
waits for a lock), it starts the service's next process beside it. The old process may still discard
guest memory after the new one has acknowledged a request. So a process serves only while it holds a
POSIX lock on a file that all processes of the service share.

A POSIX lock belongs to the process. It is released when the process ends, or closes any descriptor
of the file, which no code does. Locks of flock(2), or of an open file description, would be shared
through the store.
"""

from __future__ import annotations

import fcntl
import os

from vhost_balloon.fds import OwnedFd


class ProcessLock:
    """fd is taken over and never closed."""

    def __init__(self, fd: OwnedFd) -> None:
        self.fd = fd

    @classmethod
    def create(cls) -> ProcessLock:
        """Create a lock on a new file. Raises OSError."""
        return cls(OwnedFd(os.memfd_create("vhost-balloon lock", os.MFD_CLOEXEC)))

    def take(self) -> bool:
        """Try to take the lock until this process ends; return whether this process has it."""
        try:
            fcntl.lockf(self.fd.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        return True
